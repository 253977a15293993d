"""Model text made harmless before it leaves the kernel.

Jupyter trusts the outputs of executed cells: their markdown is rendered with raw HTML alive. What the model
wrote is somebody else's text, so `safe_markdown` rewrites it such that HTML shows as text, links go to the
web only, and nothing loads by itself.

Renderers disagree about what is code (marked, mistune, markdown-it, and JupyterLab's math pass that runs
before marked). So the output does not rest on a guess at their parse. Outside fenced blocks it is inert
*whatever* a parser makes of it: no `<` stands before a letter, no `](`, `]:`, `![` or ``@@`` remains but in
links written here, and dollars are either paired or spelled as entities. Code that must hold such
characters is written as ``<code>`` with entities. A fenced block is written anew, by itself, with a fence
longer than any in it, between blank lines, so that no earlier construct can swallow its first line.

The rules refer to CommonMark 0.31 and to JupyterLab's ``packages/rendermime/src/latex.ts`` (``removeMath``,
``replaceMath``) and ``packages/markedparser-extension/src/index.ts``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nbllm.display.safe_characters import safe_text
from nbllm.display.safe_inline import LIVE, Inline, References, is_safe_url

__all__ = ["is_safe_url", "safe_bundle", "safe_markdown", "safe_text"]

# -- blocks --------------------------------------------------------------------------------------------------

_QUOTE = re.compile(r"(?: {0,3}>[ ]?)++")
_FENCE = re.compile(r"([ \t]*)((?:[-*+]|[0-9]{1,9}[.)])[ \t]{1,4})?(`{3,}|~{3,})(.*)")
_MARKER = re.compile(r"([ \t]*)([-*+]|[0-9]{1,9}[.)])([ \t]+|$)")
_LANGUAGE = re.compile(r"[ \t{.]*([A-Za-z0-9][A-Za-z0-9_+#.-]{0,31})")


def _width(space: str) -> int:
    return len(space.expandtabs(4))


def _dedent(line: str, columns: int) -> str:
    """`line` without up to `columns` columns of leading white space."""
    space = line[: len(line) - len(line.lstrip(" \t"))]
    if "\t" not in space[:columns]:
        return line[min(len(space), columns) :]
    return " " * max(_width(space) - columns, 0) + line[len(space) :]


def _language(info: str) -> str:
    """The first word of a fence's info string.

    It ends in a class attribute, which JupyterLab does not escape when it highlights. Mermaid diagrams fetch
    images and style sheets by themselves while they are drawn (tried with mermaid 11.16 in JupyterLab
    4.6.6), so they are shown as their source.
    """
    found = _LANGUAGE.match(info)
    word = found[1] if found else ""
    return "text" if "mermaid" in word.lower() else word


def _is_shifted_in_lists(code: str) -> bool:
    """Whether JupyterLab would show `code` with a list item's indentation in it.

    Its math pass knows no indented fence. It sets what stands between two dollars aside, before the list's
    indentation is taken off, so that the lines of a shell script come back shifted.
    """
    first, last = code.find("$"), code.rfind("$")
    return "\n" in code[first:last] or re.search(r"\\begin\{[a-z]*\*?\}[^\n]*\n", code, re.IGNORECASE) is not None


@dataclass(slots=True)
class _Fence:
    """A fenced code block (CommonMark 4.5) as it is written again."""

    language: str
    lines: list[str]
    indent: int = 0  # where its list item's content starts
    marker: str = ""  # the list marker on its first line
    quote: int = 0  # depth of block quotes

    def write(self) -> tuple[list[str], bool]:
        """Its lines, and whether they need a blank line before and after."""
        code = "\n".join(self.lines)
        live = LIVE.search(code) is not None
        fence = "`" * (max((len(run) for run in re.findall("`{3,}", code)), default=2) + 1)
        if self.quote and live:
            # JupyterLab's math pass sees no fence behind `>` and would pair dollars across its first line, so
            # code that could hurt stands after the quote.
            first = indent = ""
        else:
            first = "> " * self.quote + " " * self.indent + self.marker
            indent = "> " * self.quote + " " * (self.indent + len(self.marker))
        body = [indent + line if line.strip() or not indent else indent.rstrip() for line in self.lines]
        # In a list, blank lines would set it wider, so harmless code goes without.
        return [first + fence + self.language, *body, indent + fence], live or not indent


@dataclass(slots=True)
class _Blocks:
    """Cuts text into fences and runs of prose, keeping track of list items by their content's column."""

    lines: list[str]
    at: int = 0
    items: list[int] = field(default_factory=list)
    parts: list[_Fence | list[str]] = field(default_factory=list)

    def cut(self) -> list[_Fence | list[str]]:
        prose: list[str] = []
        blank = True
        while self.at < len(self.lines):
            line = self.lines[self.at]
            fence = self._fence(line) or (self._indented(line) if blank and not self.items else None)
            if fence:
                self.parts += [prose, fence]
                prose, blank = [], True
                continue
            self._track(line, after_blank=blank)
            blank = not line.strip()
            prose.append(line)
            self.at += 1
        return [*self.parts, prose]

    def _track(self, line: str, *, after_blank: bool) -> None:
        if not line.strip():
            return
        space = _width(line[: len(line) - len(line.lstrip(" \t"))])
        marker = _MARKER.match(line)
        base = max((item for item in self.items if item <= space), default=0)
        if marker and space - base > 3:
            marker = None
        if marker or after_blank:
            self._close(space)
        if marker and len(self.items) < 32:
            gap = _width(marker[3])
            self.items.append(space + len(marker[2]) + (gap if 1 <= gap <= 4 else 1))

    def _close(self, column: int) -> None:
        while self.items and self.items[-1] > column:
            self.items.pop()

    def _fence(self, line: str) -> _Fence | None:
        quote = _QUOTE.match(line)
        depth = quote[0].count(">") if quote else 0
        found = _FENCE.fullmatch(line, quote.end() if quote else 0)
        if not found or (found[3][0] == "`" and "`" in found[4]):
            return None
        column = _width(found[1])
        if not depth:
            self._close(column)
        indent = self.items[-1] if self.items and not depth else 0
        marker = found[2].strip() + " " if found[2] else ""
        if marker and not depth:
            self.items.append(indent + len(marker))
        strip = column + (len(found[2]) if found[2] else 0)
        self.at += 1
        lines = self._content(depth, strip, found[3])
        if indent and not marker and _is_shifted_in_lists("\n".join(lines)) and self._next_width() < 4:
            indent = 0
            self.items.clear()
        return _Fence(_language(found[4]), lines, indent, marker, depth)

    def _next_width(self) -> int:
        """How far the next line that is not blank is indented."""
        for line in self.lines[self.at : self.at + 100]:
            if line.strip():
                return _width(line[: len(line) - len(line.lstrip(" \t"))])
        return 0

    def _content(self, depth: int, strip: int, fence: str) -> list[str]:
        """The lines up to the closing fence; where there is none (a stream that was cut), up to the end."""
        closing = re.compile(rf"[ \t]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
        lines: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if depth:
                quote = _QUOTE.match(line)
                if not quote:
                    break
                line = re.compile(rf"(?: {{0,3}}>[ ]?){{1,{depth}}}+").sub("", line, count=1)
            self.at += 1
            if closing.fullmatch(line) and _width(line[: len(line) - len(line.lstrip())]) <= strip + 3:
                break
            lines.append(_dedent(line, strip))
        else:
            while lines and not lines[-1].strip():
                lines.pop()
        return lines

    def _indented(self, line: str) -> _Fence | None:
        """An indented code block (CommonMark 4.4), outside lists, where its meaning is beyond doubt."""
        if not line.strip() or _width(line[: len(line) - len(line.lstrip(" \t"))]) < 4:
            return None
        lines: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip() and _width(line[: len(line) - len(line.lstrip(" \t"))]) < 4:
                break
            lines.append(_dedent(line, 4))
            self.at += 1
        while not lines[-1].strip():
            lines.pop()
            self.at -= 1
        return _Fence("", lines)


def _prose(lines: list[str], references: References, *, lone_dollar: bool) -> list[str]:
    """Prose, one run of lines at a time: blank lines (in quotes too) and link definitions part them."""
    out: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        if line.strip(" \t>") and not line.startswith("\0"):
            run.append(line)
            continue
        if run:
            out += Inline("\n".join(run), references, lone_dollar=lone_dollar).rewrite().split("\n")
            run = []
        out.append(line)
    return out[:-1]


def safe_markdown(text: str) -> str:
    r"""`text` as markdown that is harmless in a trusted output, and shows what the model meant.

    HTML shows as text, except ``<br>``, ``<sub>``, ``<sup>`` and ``<kbd>`` without attributes; images become
    links; links other than `is_safe_url` allows show as they are spelled; ``\(…\)`` and ``\[…\]`` become
    dollars, which all of Jupyter's renderers know; code shows to the letter. Control characters go as in
    `safe_text`. Takes any str, never raises, in time linear in its length. Safe to apply again.
    """
    references = References()
    parts = [
        part if isinstance(part, _Fence) else references.take(part)
        for part in _Blocks(safe_text(text).split("\n")).cut()
    ]
    dollars = sum(len(re.findall(r"\$|\\[(\[]", line)) for part in parts if isinstance(part, list) for line in part)
    rows: list[str] = []
    apart = False  # whether the last thing written wants a blank line after it
    for part in parts:
        if isinstance(part, list):
            new, new_apart = _prose(part, references, lone_dollar=dollars == 1), False
        else:
            new, new_apart = part.write()
        if not new:
            continue
        if (apart or new_apart) and rows and rows[-1].strip() and new[0].strip():
            rows.append("")
        rows += new
        apart = new_apart
    return "\n".join(references.settle(rows))


def safe_bundle(text: str) -> dict[str, str]:
    """What a notebook keeps of an answer: markdown made harmless, and plain text; of none, nothing that shows."""
    return {"text/markdown": safe_markdown(text), "text/plain": safe_text(text)} if text else {"text/plain": ""}
