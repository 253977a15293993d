r"""Variables in a prompt: `{name}`, `{df.shape}`, `{rows[0]}`, `{x:.2f}`, `{Out[3]}`, and `{=any.expression()}`.

Plain braces never call anything unless told: they take a name of the notebook, attributes without a leading
underscore, subscripts by a literal, a conversion and a format spec. What that cannot avoid is the object's
own code behind a property, `__getitem__`, `__format__` and `__str__`. Everything else in braces (JSON,
LaTeX, Jinja's `{{x}}`, a dict, a set) stays exactly as it is. Filled-in text is never looked at again.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbllm.errors import InterpolationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["Interpolated", "in_fence", "interpolate", "is_a"]

MAX_ROWS = 10
MAX_COLUMNS = 40
MAX_CELL = 200
MAX_HINTS = 20

# What plain braces may hold. `!` and `:` end the expression as in an f-string; a spec has no braces in it, so
# that nothing nests, and does not read like `{key: some value}`. The bounds keep the search linear.
_SUBSCRIPT = r"\[(?:-?[0-9]{1,18}|'[^'\\\n]{0,200}'|\"[^\"\\\n]{0,200}\")\]"
_PLAIN = re.compile(
    rf"([^\W\d]\w{{0,199}})((?:\.[^\W\d]\w{{0,199}}|{_SUBSCRIPT}){{0,32}})"
    r"(?:!([rsa]))?(?::((?! [^\W\d]{2})[^{}\n]{0,100}))?\}"
)
_DOUBLE_CLOSE = re.compile(r"[^{}\n]{0,4000}\}\}")
_STEP = re.compile(rf"\.([^\W\d]\w*)|{_SUBSCRIPT}")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?(`{3,}(?=[^`]*$)|~{3,})")
_CONVERSIONS: dict[str, Callable[[object], str]] = {"r": repr, "s": str, "a": ascii}
_MAX_EXPRESSION = 4000
_WIDE = re.compile(r"[0-9]{5}")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_NUMBERED = {"In": "there is no input", "Out": "there is no output", "Err": "no error is on record of execution"}


@dataclass(frozen=True, slots=True)
class Interpolated:
    """A prompt with its variables filled in.

    Attributes:
        text: The prompt as it is sent.
        filled: The expressions that were filled in, as they were written, in order.
        hints: Sentences about braces that were left alone and look like a slip.
    """

    text: str
    filled: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def interpolate(
    template: str,
    namespace: Mapping[str, object],
    *,
    redact: Callable[[str], str] | None = None,
    max_rows: int = MAX_ROWS,
) -> Interpolated:
    """Fill the variables of `namespace` in.

    Nothing is filled in inside code fences; inside `inline code` it is. A plain expression that does not name
    anything, or whose evaluation raises, stays as written, with a hint where it looks like a slip.

    Args:
        template: The prompt.
        namespace: Names to their values, such as IPython's `user_ns`, where `In` and `Out` are names too;
            `nbllm.magics.executions.namespace` adds `Err`.
        redact: Applied to each value's text before it is filled in, so that no known key is sent.
        max_rows: How many rows of a table are sent; how many are not is said.

    Raises:
        InterpolationError: A `{=expression}` failed.
    """
    if "{" not in template:
        return Interpolated(template)
    filling = _Filling(namespace, redact or (lambda text: text), max_rows)
    text = "".join(chunk if fenced else filling.fill(chunk) for chunk, fenced in _split_fences(template))
    return Interpolated(text, tuple(filling.filled), filling.said())


def in_fence(text: str) -> bool:
    """Whether what stands behind the text would stand in a code fence, where nothing is filled in."""
    fenced = False
    for _, fenced in _split_fences(text):  # noqa: B007 - the last one counts
        pass
    return fenced


def _split_fences(template: str) -> Iterator[tuple[str, bool]]:
    """Runs of lines, and whether they are a code fence (CommonMark 4.5: an open one ends with the text)."""
    run: list[str] = []
    fence = ""
    for line in _LINE.findall(template):  # the line ends of CommonMark 2.1, which are fewer than Python's
        found = _FENCE.match(line.rstrip("\r\n"))
        if fence:
            run.append(line)
            bare = line.lstrip(" \t>").rstrip()
            if len(bare) >= len(fence) and not bare.strip(fence[0]):
                yield "".join(run), True
                run, fence = [], ""
        elif found:
            yield "".join(run), False
            run, fence = [line], found[1]
        else:
            run.append(line)
    yield "".join(run), bool(fence)


@dataclass(slots=True)
class _Filling:
    """One pass over a prompt. Linear: each brace is looked at once, within bounds."""

    namespace: Mapping[str, object]
    redact: Callable[[str], str]
    max_rows: int
    filled: list[str] = field(default_factory=list)
    hints: dict[str, None] = field(default_factory=dict)
    more: int = 0
    near: dict[str, str | None] = field(default_factory=dict)

    def said(self) -> tuple[str, ...]:
        """The hints, and how many were one too many."""
        more = f"So were {self.more} more braces." if self.more > 1 else "So was one more pair of braces."
        return (*self.hints, more) if self.more else tuple(self.hints)

    def _hint(self, text: str) -> None:
        if len(self.hints) < MAX_HINTS:
            self.hints[text] = None
        elif text not in self.hints:
            self.more += 1

    def fill(self, text: str) -> str:
        out: list[str] = []
        done = 0
        position = text.find("{")
        while position >= 0:
            end = self._skip_doubled(text, position)
            if end is None:
                value, end = self._braces(text, position + 1)
                if value is not None:
                    out += [text[done:position], self.redact(value)]
                    done = end
            position = text.find("{", end)
        out.append(text[done:])
        return "".join(out)

    @staticmethod
    def _skip_doubled(text: str, position: int) -> int | None:
        """Where to go on after `{{…}}`, which stays as it is (Jinja, LaTeX, an f-string's escape)."""
        if not text.startswith("{{", position):
            return None
        while text.startswith("{", position):
            position += 1
        closing = _DOUBLE_CLOSE.match(text, position)
        return closing.end() if closing else position

    def _braces(self, text: str, start: int) -> tuple[str | None, int]:
        """The text for the braces that open before `start`, or None, and where to go on."""
        if text.startswith("=", start):
            return self._expression(text, start + 1)
        found = _PLAIN.match(text, start)
        if not found:
            return None, start
        name, path, conversion, spec = found.groups()
        if name not in self.namespace:
            self._suggest(name, found[0][:-1])
            return None, start
        written = found[0][:-1]
        if any(step.startswith("_") for step in re.findall(r"\.(\w+)", re.sub(_SUBSCRIPT, "", path))):
            self._hint(
                f"{{{written}}} was left as it is: plain braces do not take names that start with an "
                f"underscore; {{={written}}} does."
            )
            return None, found.end()
        if spec and _WIDE.search(spec):  # a pasted `{x:>999999999}` would fill the memory
            self._hint(f"{{{written}}} was left as it is: no format is so wide.")
            return None, found.end()
        try:
            value = _show(_walk(self.namespace[name], path), conversion, spec, self.max_rows)
        except Exception as error:  # noqa: BLE001  # whatever the object's own code raises
            self._hint(f"{{{written}}} was left as it is: {self._reason(error, name, path)}")
            return None, found.end()
        self.filled.append(written)
        return value, found.end()

    def _reason(self, error: Exception, name: str, path: str) -> str:
        if name in _NUMBERED and isinstance(error, LookupError) and re.fullmatch(r"\[-?[0-9]+\]", path):
            return f"{_NUMBERED[name]} {path[1:-1]}."
        return self.redact(f"{type(error).__name__}: {_brief(error)}")

    def _suggest(self, name: str, written: str) -> None:
        if not 3 <= len(name) <= 60:
            return
        if name not in self.near:
            if len(self.near) >= MAX_HINTS:  # each look compares with every name there is
                return
            names = [n for n in self.namespace if isinstance(n, str) and not n.startswith("_")]
            self.near[name] = next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.75)), None)
        if close := self.near[name]:
            self._hint(f"{{{written}}} was left as it is: did you mean {{{close}}}?")

    def _expression(self, text: str, start: int) -> tuple[str | None, int]:
        """`{=expression}`, evaluated because it was asked for; `!r` and `:spec` may follow it."""
        try:
            end, code, conversion, spec = _parse_expression(text, start)
        except SyntaxError as error:
            line = text[start:].split("\n", 1)[0][:80]
            raise InterpolationError(
                f"{{={line} is not a Python expression: {error.msg}.",
                action="Mend the expression, or pass --raw to send the braces as they are.",
            ) from None
        written = text[start - 1 : end - 1]
        try:
            # The user's own code in the user's own namespace: `{=…}` is the asking.
            value = eval(code, dict(self.namespace))  # noqa: S307
            shown = _show(value, conversion, spec, self.max_rows)
        except Exception as error:
            raise InterpolationError(
                self.redact(f"{{{written}}} failed: {type(error).__name__}: {_brief(error)}"),
                action="Run the expression in a cell of its own to see where it fails, or pass --raw.",
            ) from error
        self.filled.append(written)
        return shown, end


def _parse_expression(text: str, start: int) -> tuple[int, Any, str | None, str | None]:
    """Find the brace that ends `{=…}`: the first at which what stands before it is an expression.

    Returns where to go on, the compiled expression, the conversion and the spec.
    """
    failure = SyntaxError("there is no closing brace")
    end = start
    for _ in range(32):  # dicts, sets and strings have braces of their own; a bound keeps this linear
        end = text.find("}", end, start + _MAX_EXPRESSION)
        if end < 0:
            break
        source = text[start:end]
        end += 1
        for body, conversion, spec in _candidates(source):
            try:
                return end, compile(body.strip(), "<prompt>", "eval"), conversion, spec
            except (SyntaxError, ValueError) as error:  # ValueError: a null character
                failure = error if isinstance(error, SyntaxError) else SyntaxError(str(error))
            except (RecursionError, MemoryError, OverflowError):
                raise SyntaxError("it nests too deep") from None
    raise failure


def _candidates(source: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Ways to read an expression with or without `!r` and `:spec` behind it, the longest expression first."""
    yield source, None, None
    found = re.fullmatch(r"(.*?)(?:!([rsa]))?(?::([^{}:\n]{0,100}))?", source, re.DOTALL)
    if found and (found[2] or found[3]):
        yield found[1], found[2], found[3]


def _walk(value: object, path: str) -> object:
    """Follow attributes and literal subscripts from `value`."""
    for step in _STEP.finditer(path):
        key = None if step[1] else ast.literal_eval(step[0][1:-1])
        value = getattr(value, step[1]) if step[1] else value[key]  # type: ignore[index]
    return value


def _brief(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # an exception's own __str__ may raise
        text = ""
    return " ".join(text.split())[:200]


# -- values as text ------------------------------------------------------------------------------------------


def _show(value: object, conversion: str | None, spec: str | None, max_rows: int) -> str:
    if conversion:
        value = _CONVERSIONS[conversion](value)
    if spec:
        return format(value, spec)
    if conversion is None:
        table = _table(value, max_rows)
        if table is not None:
            return table
    return str(value)


def is_a(value: object, module: str, name: str) -> bool:
    """Isinstance by name: a library that is not imported has made no value, and is not imported for this.

    By its type alone: a lazy proxy's `__class__` is not asked, which would be to run it.
    """
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and issubclass(type(value), kind)


def _table(value: Any, max_rows: int) -> str | None:
    """A markdown table of a pandas or polars frame or series; None for anything else."""
    if is_a(value, "pandas", "Series"):
        value = value.to_frame(name=value.name if value.name is not None else "value")
    elif is_a(value, "polars", "Series"):
        value = value.to_frame()
    if is_a(value, "pandas", "DataFrame"):
        head = value.iloc[:max_rows, :MAX_COLUMNS]
        plain = type(value.index).__name__ == "RangeIndex"
        columns = [*([] if plain else [value.index.name or ""]), *head.columns]
        rows = ([*([] if plain else [index]), *row] for index, *row in head.itertuples(name=None))
    elif is_a(value, "polars", "DataFrame"):
        head = value[:max_rows, :MAX_COLUMNS]
        columns, rows = head.columns, (list(row) for row in head.iter_rows())
    else:
        return None
    return _markdown(columns, rows, _left_out(len(value), len(value.columns), max_rows))


def _left_out(rows: int, columns: int, max_rows: int) -> str:
    """How much of a table is not shown, in words; empty where all of it is."""
    left = [(rows - max_rows, "row"), (columns - MAX_COLUMNS, "column")]
    said = " and ".join(f"{count:,} more {what}{'s' if count > 1 else ''}" for count, what in left if count > 0)
    return f"\n\n… {said} not shown" if said else ""


def _markdown(columns: Iterable[object], rows: Iterable[list[object]], left_out: str) -> str:
    header = [_cell(column) for column in columns]
    lines = [header, ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + left_out


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
