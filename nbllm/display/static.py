"""What a notebook keeps of an answer: the form that suits its format, a footer, and where it came from.

Nothing in it tells an answer that was made from its replay out of the cache: no time, no `cached`. A notebook that is
run again from its cache comes out the same to the byte.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any, Final

from nbllm.accounting import usd
from nbllm.display.html import sandboxed
from nbllm.display.note import NOTHING, Note
from nbllm.display.safe import safe_markdown, safe_text
from nbllm.errors import NbllmError
from nbllm.identity import prompt_hash
from nbllm.response import CodeBlock, Response, ResponseStream

__all__ = [
    "LONGEST_NAME",
    "emphasis",
    "formatted",
    "live_form",
    "note_said",
    "provenance",
    "static_form",
    "usage_line",
]

LONGEST_NAME: Final = 80
"""Characters of a name in the footer; a server may call its models anything."""

SETTINGS: Final = ("seed", "top_p", "stop")
"""The common options whose value the provenance tells; of tools it tells the names."""


def static_form(
    stream: ResponseStream, note: Note = NOTHING, error: BaseException | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """The mime bundle that is kept, and its metadata with the provenance.

    `text/plain` begins with the answer to the letter, but for characters that do something.

    Args:
        stream: An answer that has ended, however it did.
        note: What is to be said below it.
        error: An error to show in it, where none can be raised.
    """
    text, metadata = stream.text, {"nbllm": provenance(stream, note)}
    if not text and error is None and stream.state in ("incomplete", "failed"):
        return {"text/plain": ""}, metadata  # the error is shown, and nothing else
    marks, said, lines = _marks(stream), _said(stream, note), _error_lines(error)
    foot = " · ".join([usage_line(stream), *said])
    # Plain text stands in for markdown, but where there is none.
    below = (*marks, foot) if note.format == "text" else (f"*{line}*" for line in (*marks, " · ".join(said)) if line)
    shown = {"text/plain": "\n\n".join(part for part in (safe_text(text), *lines, *map(safe_text, below)) if part)}
    if note.format == "html" and text:
        paragraphs = [f"<p><em>{_no_math(html.escape(safe_text(line)))}</em></p>" for line in (*marks, *lines, foot)]
        shown["text/html"] = "".join([sandboxed(_content(stream, "html")), *paragraphs])
    elif note.format != "text":
        answer = [formatted(stream.response(), note.format)] if text else []
        shown["text/markdown"] = "\n\n".join([*answer, *map(emphasis, (*marks, *lines, foot))])
    return shown, metadata


def live_form(text: str, form: str = "markdown") -> dict[str, str]:
    """The answer so far, where it is redrawn as a whole."""
    if form in ("markdown", "math"):
        return {"text/markdown": safe_markdown(text), "text/plain": safe_text(text)}
    return {"text/plain": safe_text(text)}


def usage_line(stream: ResponseStream) -> str:
    """The model, tokens and cost, as far as they are known: `openai:gpt-5.4-mini · 1,234 → 567 tokens · $0.0012`."""
    usage = stream.usage
    parts = [_name(f"{stream.provider}:{stream.model}")]
    if usage.input_tokens is not None and usage.output_tokens is not None:
        parts.append(f"{usage.input_tokens:,} → {usage.output_tokens:,} tokens")
    elif usage.output_tokens is not None:
        parts.append(f"{usage.output_tokens:,} tokens")
    if stream.cost is not None:
        parts.append(usd(stream.cost))
    return " · ".join(parts)


def provenance(stream: ResponseStream, note: Note = NOTHING) -> dict[str, Any]:
    """Where the answer came from, as plain data; nothing of the prompt but its hash and the names filled in."""
    request, usage = stream.request, stream.usage
    parameters: dict[str, Any] = {}
    if request is not None:
        parameters = {"max_tokens": int(request.max_tokens), "temperature": float(request.temperature)}
        parameters |= {name: request.options[name] for name in SETTINGS if _is_plain(request.options.get(name))}
        if tools := _tool_names(request.options.get("tools")):
            parameters["tools"] = tools
    return {
        "provider": stream.provider,
        "model": stream.model,
        "parameters": parameters,
        "prompt_hash": None if request is None else prompt_hash(request),
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
        "cost": stream.cost,
        "state": stream.state,
        "finish_reason": stream.finish_reason,
        "request_id": stream.request_id,
        "fallback_of": list(stream.fallback_of),
        "filled_in": list(note.filled),
        "history": note.history,
    }


# -- what is said below


def _marks(stream: ResponseStream) -> list[str]:
    if stream.state == "interrupted":
        return ["Stopped here." if stream.text else "Stopped before the first word."]
    if stream.state == "complete":
        return [] if stream.text or stream.tool_calls else ["The answer is empty."]
    return ["The answer breaks off here."] if stream.text else []


def _error_lines(error: BaseException | None) -> list[str]:
    if error is None:
        return []
    message, action = (error.message, error.action) if isinstance(error, NbllmError) else (str(error), None)
    lines = [f"{type(error).__name__}: {message}", *([f"→ {action}"] if action else [])]
    return [" ".join(safe_text(line).split()) for line in lines]


def _said(stream: ResponseStream, note: Note) -> list[str]:
    said = []
    if stream.fallback_of:
        said.append(f"instead of {', '.join(map(_name, stream.fallback_of))}")
    if stream.finish_reason == "length":
        said.append("stopped at max_tokens")
    elif stream.finish_reason == "content_filter":
        said.append("cut by the provider's content filter")
    if stream.tool_calls:
        said.append(f"asks for {', '.join(_name(call.name) for call in stream.tool_calls)}")
    return [*said, *note_said(note)]


def note_said(note: Note) -> list[str]:
    """What the note has to say, in short phrases of plain text."""
    said = []
    if note.filled:
        said.append(f"filled in: {', '.join(f'{{{_name(name)}}}' for name in note.filled)}")
    if note.history:
        said.append(f"{note.history} earlier message{'' if note.history == 1 else 's'} sent along")
    if note.stale:
        said.append(f"resting on an older answer now: {', '.join(map(_name, note.stale))}")
    return [*said, *(" ".join(line.split()) for line in note.lines)]


def _name(name: str) -> str:
    name = " ".join(safe_text(name).split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


_MARKUP = re.compile(r"[^\w ,:.-]|_|(?<!\w)-|(?<!\d)\.(?=\w)|\.(?=[^\W\d])", re.ASCII)
_MATH = re.compile(r"[$\\]")


def emphasis(line: str) -> str:
    """A line of ours in italics, in which nothing is markup: a model's or a cell's name may be anything.

    What could be part of any is spelled as an entity, which no renderer takes for markup: neither markdown nor HTML,
    nor formulas, nor addresses that GitHub's markdown would link by themselves (of which some begin with `www.`).
    """
    line = " ".join(safe_text(line).split())
    return f"*{_MARKUP.sub(lambda found: found[0] if found[0] > '~' else f'&#{ord(found[0])};', line)}*"


def _no_math(line: str) -> str:
    # JupyterLab typesets formulas in HTML outputs too, and TeX can hold links.
    return _MATH.sub(lambda found: f"<span>&#{ord(found[0])};</span>", line)


# -- formats


def formatted(answer: Response, form: str) -> str:
    """The answer as markdown that is safe; what is no markdown, in a fence."""
    if form == "code":
        blocks = answer.code_blocks
        language = blocks[0].language if blocks else ""
        return _fenced("\n\n".join(block.code.rstrip("\n") for block in blocks) or answer.strip("\n"), language)
    if form == "json":
        return _fenced(*_pretty(answer))
    if form in ("text", "html"):
        return _fenced(answer.strip("\n"), form)
    return safe_markdown(_math(answer) if form == "math" else str(answer))


def _content(stream: ResponseStream, language: str) -> str:
    """The answer's only block of that language, or the answer."""
    blocks: list[CodeBlock] = [b for b in stream.response().code_blocks if b.language.lower() in ("", language)]
    return blocks[0].code if len(blocks) == 1 else stream.text


def _fenced(code: str, language: str = "") -> str:
    fence = "`" * (max((len(run) for run in re.findall("`{3,}", code)), default=2) + 1)
    return safe_markdown(f"{fence}{language}\n{code}\n{fence}")


def _pretty(answer: Response) -> tuple[str, str]:
    """The JSON, indented, and its language; the text as it is, where it is none."""
    try:
        return json.dumps(answer.json(), indent=2, ensure_ascii=False, allow_nan=False), "json"
    except (NbllmError, ValueError, RecursionError):
        return answer.strip("\n"), ""


_DELIMITED = re.compile(r"\$|\\[(\[]|\\begin\{(?:equation|align|gather|multline|eqnarray|flalign|alignat)\*?\}")
_TEX = re.compile(r"\\[A-Za-z]+|[\^_=]")
_WORDS = re.compile(r"[A-Za-z]{3,} +[A-Za-z]{2,} +[A-Za-z]{2,}")


def _math(answer: Response) -> str:
    """The answer with dollars around, where it is a bare formula."""
    text = answer.strip()
    blocks = answer.code_blocks
    if len(blocks) == 1 and blocks[0].language.lower() in ("tex", "latex", "math") and text.startswith(("```", "~~~")):
        text = blocks[0].code.strip()
    prose = re.sub(r"\\text\w*\{[^}]*\}", "", text)
    if _DELIMITED.search(text) or not _TEX.search(text) or _WORDS.search(prose) or re.search(r"\n\s*\n", text):
        return text
    return f"$$\n{text}\n$$"


# -- provenance


def _is_plain(value: Any) -> bool:
    """Whether it is JSON that no one else's object is hidden in."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 100 and all(isinstance(item, str) for item in value)
    return type(value) in (str, int, float)


def _tool_names(tools: Any) -> list[str]:
    found = []
    for tool in tools if isinstance(tools, (list, tuple)) else ():
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str):
            found.append(name)
    return found
