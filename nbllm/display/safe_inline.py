"""Paragraphs made harmless: links, code spans, formulas and everything else that stands within a line.

`safe.py` cuts a text into blocks and hands the prose to `Inline`; what holds of its output is said there.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

from nbllm.display.safe_characters import safe_text

__all__ = ["LIVE", "Inline", "References", "is_safe_url"]

# -- links ---------------------------------------------------------------------------------------------------

_URL = re.compile(
    r"https?://[^\s/?#@\\<>\"]{1,255}(?:[/?#][^\s\\<>\"]{0,2000})?|mailto:[^\s\\<>\"]{1,500}|#[\w.%-]{0,200}",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_PUNCTUATION = r"!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~"


def is_safe_url(url: str) -> bool:
    """Whether a link to `url` may be live: http and https with a plain host, mailto, and anchors of the page.

    A relative path is none of these: in JupyterLab it is a link to the user's own server, with the user's
    rights (`/files/…`, `/logout`, `/hub/user-redirect/git-pull?…`).
    """
    return safe_text(url) == url and not _ENTITY.search(url) and _URL.fullmatch(url) is not None


def _destination(raw: str) -> str | None:
    """The link destination `raw` spelled so that it holds no markup, or None where it is not to be live."""
    from html import unescape  # its table of 2,231 names is needed only here

    url = _ENTITY.sub(lambda m: unescape(m[0]), re.sub(rf"\\([{_PUNCTUATION}])", r"\1", raw))
    if not is_safe_url(url):
        return None
    url = re.sub(r"[^\w\-.~:/?#@!&+,;=%]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), url)
    return url.replace("@@", "@%40")


# -- text that is inert under any parse ----------------------------------------------------------------------

_NAMES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What would be live if a parser did not take the code span for code (or, as GFM tables and mistune's math
# rule do, looked into it first).
LIVE = re.compile(r"<[A-Za-z/!?]|\][(\[:]|!\[|[$]|@@|\\\\|\\(?:begin|end)\b|```|~~~")
_LITERAL = re.compile(rf"[{_PUNCTUATION}]")
_KEPT = " ,;=+%-./:?#"
# Tags without attributes that models write where markdown has nothing, and what this module writes itself.
_TAG = re.compile(
    r"<br ?/?>|</?(?:sub|sup|kbd)>|<span>&#36;</span>"
    r"|<code>(?:[\w ,;=+%-]|[^\x00-\x7f]|&(?:lt|gt|amp|#[0-9]{1,6});)++</code>"
)
_AUTOLINK = re.compile(
    r"<((?:https?://|mailto:)[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})>", re.IGNORECASE
)
_LINK_TAIL = re.compile(
    r"\([ \t]*+\n?[ \t]*+"
    r"(?:<([^<>\n]{0,2000}+)>|((?:\\.|[^\s()<>\\]|\((?:\\.|[^\s()<>\\]){0,500}+\)){0,2000}+))"
    r"(?:\s{1,9}+(?:\"(?:\\.|[^\"\\]){0,500}+\"|'(?:\\.|[^'\\]){0,500}+'|\((?:\\.|[^()\\]){0,500}+\)))?+"
    r"\s{0,9}+\)"
)
_DEFINITION = re.compile(
    r" {0,3}\[([^\[\]\\^][^\[\]\\]{0,200})\]:[ \t]{0,9}<?([^\s<>]{1,2000})>?"
    r"(?:[ \t]{1,9}(?:\"[^\"]{0,500}\"|'[^']{0,500}'|\([^()]{0,500}\)))?[ \t]*"
)
# A code span may run on to the next line only where that line cannot start a block (CommonMark 3: blocks
# first).
_BLOCK_START = re.compile(r"\n[ \t]*(?:[>|#<~`=]|[-*+_]|[0-9]{1,9}[.)]|\n|$)")
_TABLE = re.compile(r"^[ >]*+\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-*+:?[ \t]*+)++$", re.MULTILINE)
_SPECIAL = re.compile(r"[\\`$<\[\]!@]|~{3,}")
_ENVIRONMENT = re.compile(r"begin\{([A-Za-z]{1,20}\*?)\}")
# Commands by which TeX reaches for links, styles and files. MathJax's Safe mode and KaTeX refuse the worst.
_TEX_REACH = re.compile(r"\\(?=(?:href|url|style|class|cssId|require|include\w*|html\w*|data|unicode)(?![A-Za-z]))")


def _entity(char: str) -> str:
    return _NAMES.get(char) or f"&#{ord(char)};"


def _literal(text: str) -> str:
    """`text` such that it shows to the letter wherever markdown is parsed."""
    return _LITERAL.sub(lambda m: m[0] if m[0] in _KEPT else _entity(m[0]), text)


def _code(content: str, *, in_link: bool, in_table: bool) -> str:
    """A code span: in backticks where no misreading could hurt, otherwise as ``<code>`` with entities."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    if not LIVE.search(content) and longest < 2 and not (in_link and re.search(r"[\[\]]", content)):
        ticks = "`" * (longest + 1)
        return f"{ticks}{content}{ticks}"
    if content.startswith(" ") and content.endswith(" ") and content.strip(" "):
        content = content[1:-1]  # CommonMark 6.1: one space is stripped from both sides
    if in_table:
        content = content.replace("\\|", "|")  # GFM 4.10
    body = "".join(
        c if c.isalnum() or c in " ,;=+%-" or ord(c) > 127 else _entity(c) for c in content.replace("\n", " ")
    )
    return f"<code>{body}</code>" if body else ""


def _math(body: str) -> str | None:
    r"""TeX that means the same and is inert where a renderer has no math; None where it cannot be had.

    mistune's block rule takes everything from `$$` or `\begin{x}` to its end for math, across blank lines and
    fences: so each must be closed, and none may look escaped.
    """
    open_dollar = "$" in body.replace("\\$", "") or "\\\\$" in body
    if not body.strip() or open_dollar or "`" in body or "~~~" in body or not _is_balanced(body):
        return None
    body = re.sub(r"<(?=[A-Za-z/!?])", "< ", body)  # in TeX, spaces are free
    body = re.sub(r"\](?=[(\[:])", "] ", body).replace("![", "! [").replace("@@", "@ @")
    return _TEX_REACH.sub(r"\\ ", body) + (" " if body.endswith("\\") else "")


def _is_balanced(body: str) -> bool:
    r"""Whether every `\begin{x}` in `body` has its `\end{x}`."""
    stack: list[str | None] = []
    for found in re.finditer(r"\\(begin|end)\b(?:\{([A-Za-z]{1,20}\*?)\})?", body):
        if found[1] == "begin" and found[2]:
            stack.append(found[2])
        elif not stack or stack.pop() != found[2]:
            return False
    return not stack


def _is_inline_math(body: str, after: str) -> bool:
    """Whether ``$body$`` is meant as math and not as two prices (pandoc's rule, made a bit stricter)."""
    if re.search(r"\\[A-Za-z]|[\^_]", body):
        return True
    tight = not (body[:1].isspace() or body[-1:].isspace() or after.isdigit())
    return tight and not re.match(r"[0-9][0-9.,]*[KMBkmb]?(?:[-/]|\s+[A-Za-z]{2})", body)


@dataclass(slots=True)
class References:
    """Link reference definitions (CommonMark 4.7), resolved here so that none is left for a parser."""

    targets: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @staticmethod
    def label(raw: str) -> str:
        return " ".join(raw.split()).casefold()

    def take(self, lines: list[str]) -> list[str]:
        """Note the definitions in `lines`, and mark their lines with U+0000, which no text here still has."""
        marked: list[str] = []
        at_start = True
        for line in lines:
            found = _DEFINITION.fullmatch(line) if at_start else None
            if found:
                label = self.label(found[1])
                self.targets.setdefault(label, found[2])
                marked.append(f"\0{label}\0{line}")
            else:
                marked.append(line)
            at_start = bool(found) or not line.strip()
        return marked

    def look_up(self, raw: str) -> str | None:
        label = self.label(raw)
        if label not in self.targets:
            return None
        self.used.add(label)
        return self.targets[label]

    def settle(self, rows: list[str]) -> list[str]:
        """`rows` without the definitions that served a link; the others show as text."""
        settled = []
        for row in rows:
            if not row.startswith("\0"):
                settled.append(row)
                continue
            _, label, line = row.split("\0")
            if label not in self.used:
                settled.append(Inline(line, References(), lone_dollar=False).rewrite())
        return settled


class Inline:
    """Rewrites the inline text of one run of non-blank lines (no fence in it). Linear in its length."""

    def __init__(self, text: str, references: References, *, lone_dollar: bool, in_link: bool = False) -> None:
        self.text = text
        self.references = references
        self.lone_dollar = lone_dollar
        self.in_link = in_link
        self.in_table = bool(_TABLE.search(text))
        self.out: list[str] = []
        self.runs: dict[int, list[int]] = {}
        for run in re.finditer("`+", text):
            self.runs.setdefault(len(run[0]), []).append(run.start())
        self.brackets = self._match_brackets()
        self.absent: set[str] = set()  # delimiters known not to come again

    def rewrite(self) -> str:
        position = 0
        while (found := _SPECIAL.search(self.text, position)) is not None:
            self.out.append(self.text[position : found.start()])
            position = self._RULES[found[0][0]](self, found.start())
        self.out.append(self.text[position:])
        return "".join(self.out)

    def _match_brackets(self) -> dict[int, int]:
        pairs, stack = {}, []
        for found in re.finditer(r"\\[\s\S]|[\[\]]", self.text):
            if found[0] == "[":
                stack.append(found.start())
            elif found[0] == "]" and stack:
                pairs[stack.pop()] = found.start()
        return pairs

    def _find(self, needle: str, start: int) -> int:
        """Like str.find; a needle that was once not found costs nothing again."""
        if needle in self.absent or len(self.absent) > 64:
            return -1
        at = self.text.find(needle, start)
        if at < 0:
            self.absent.add(needle)
        return at

    def _bracket(self, opened: str) -> None:
        """Append what starts with ``[``; an exclamation mark before it would make it an image."""
        if self._last().endswith("!"):
            while not self.out[-1]:
                self.out.pop()
            self.out[-1] = self.out[-1][:-1] + "&#33;"
        self.out.append(opened)

    def _backtick(self, at: int) -> int:
        length = len(re.compile("`+").match(self.text, at)[0])  # type: ignore[index]
        starts = self.runs.get(length, [])
        index = bisect_left(starts, at + length)
        if index < len(starts):
            content = self.text[at + length : starts[index]]
            if "\n" not in content or not _BLOCK_START.search(content):
                self.out.append(_code(content, in_link=self.in_link, in_table=self.in_table))
                return starts[index] + length
        self.out.append("&#96;" * length)
        return at + length

    def _dollar(self, at: int) -> int:
        text = self.text
        if text.startswith("$$", at):
            end = self._find("$$", at + 2)
            if end > 0 and self._put_math("$$", at, at + 2, end):
                return end + 2
            self._literal_dollar(2)
            return at + 2
        end = self._find("$", at + 1)
        while end > 0 and text[end - 1] == "\\":
            end = self._find("$", end + 1)
        if (
            end > 0
            and text[end : end + 2] != "$$"
            and _is_inline_math(text[at + 1 : end], text[end + 1 : end + 2])
            and self._put_math("$", at, at + 1, end)
        ):
            return end + 1
        self._literal_dollar(1)
        return at + 1

    def _put_math(self, dollars: str, at: int, start: int, end: int) -> bool:
        """Append the math that opens at `at`, its TeX from `start` to `end`, if it can be had inertly."""
        body = _math(self.text[start:end])
        if body is None:
            return False
        if dollars == "$":
            body = body.strip()
        elif "\n" in body and not self._starts_as_it_ends(at, end):
            if "%" in body:  # a comment would reach further on a joined line
                return False
            body = re.sub(r"\s*\n[ \t>]*", " ", body)
        if self._last().endswith("$"):
            self.out.append(" ")  # `$a$` and `$b$` together would hold a `$$`
        self.out.append(f"{dollars}{body}{dollars}")
        return True

    def _starts_as_it_ends(self, at: int, end: int) -> bool:
        """Whether a parser that looks for `$$` only where a line starts sees both of them or neither."""
        before = self.text[self.text.rfind("\n", 0, at) + 1 : at]
        closing = self.text[self.text.rfind("\n", 0, end) + 1 : end]
        return not self.in_link and (not before or bool(closing.strip(" \t>")) or before == closing)

    def _last(self) -> str:
        return next((piece for piece in reversed(self.out) if piece), "")

    def _literal_dollar(self, count: int) -> None:
        # MathJax reads the page's text after marked, where `\$` and `&#36;` have become `$` again; it does
        # not look across elements (mathjax-full handlers/html/HTMLDomStrings).
        self.out.append("$" if self.lone_dollar and count == 1 else "<span>&#36;</span>" * count)

    def _backslash(self, at: int) -> int:
        text, after = self.text, self.text[at + 1 : at + 2]
        for slashes in ("\\\\", "\\"):  # JupyterLab's `\\(` and TeX's own `\(`, which models write
            for opening, closing, dollars in (("(", ")", "$"), ("[", "]", "$$")):
                if text.startswith(slashes + opening, at):
                    start = at + len(slashes) + 1
                    end = self._find(slashes + closing, start)
                    if end > 0 and self._put_math(dollars, at, start, end):
                        return end + len(slashes) + 1
        environment = _ENVIRONMENT.match(text, at + 1)
        if environment:
            closing = f"\\end{{{environment[1]}}}"
            end = self._find(closing, environment.end())
            body = _math(text[environment.end() : end]) if end > 0 else None
            if body is not None:
                self.out.append(f"\\{environment[0]}{body}{closing}")
                return end + len(closing)
        if text.startswith(("begin{", "end{"), at + 1):
            self.out.append("&#92;")
            return at + 1
        if after == "$":
            self._literal_dollar(1)
        elif after in tuple("<[]!`\\@()&"):
            self.out.append(_entity(after))
        else:
            self.out.append("\\" + after)
        return at + 1 + len(after)

    def _less_than(self, at: int) -> int:
        tag = _TAG.match(self.text, at)
        if tag:
            self.out.append(tag[0])
            return tag.end()
        found = _AUTOLINK.match(self.text, at)
        if found:
            url = found[1] if ":" in found[1] else "mailto:" + found[1]
            destination = None if self.in_link else _destination(url)
            if destination:
                self._bracket(f"[{_literal(found[1])}]({destination})")
                return found.end()
        self.out.append("&lt;" if re.match(r"[A-Za-z/!?]", self.text[at + 1 : at + 2]) else "<")
        return at + 1

    def _target(self, opened: int) -> tuple[int, str, int] | None:
        """Where the text of the link opened at `opened` ends, its raw destination, and where the link ends.

        CommonMark 6.3: inline, full, collapsed and shortcut links; None where it is none of these.
        """
        closed = self.brackets.get(opened)
        if closed is None or closed - opened > 2000:  # a bound keeps deep nesting linear
            return None
        tail = _LINK_TAIL.match(self.text, closed + 1)
        if tail:
            return closed, (tail[1] if tail[1] is not None else tail[2]), tail.end()
        label, end = self.text[opened + 1 : min(closed, opened + 300)], closed + 1
        if end in self.brackets and self.brackets[end] - end < 300:
            label = self.text[end + 1 : self.brackets[end]].strip() or label
            end = self.brackets[end] + 1
        target = self.references.look_up(label)
        return None if target is None else (closed, target, end)

    def _open_bracket(self, at: int) -> int:
        target = None if self.in_link else self._target(at)
        if target:
            closed, raw, end = target
            inner = self.text[at + 1 : closed]
            destination = _destination(raw)
            if destination and not _BLOCK_START.search(inner):
                shown = Inline(inner, self.references, lone_dollar=False, in_link=True).rewrite().strip()
                self._bracket(f"[{shown or _literal(destination)}]({destination})")
                return end
        if self.in_link:
            self.out.append("&#91;")
        else:
            self._bracket("[")
        return at + 1

    def _close_bracket(self, at: int) -> int:
        self.out.append("&#93;" if self.in_link or self.text[at + 1 : at + 2] in tuple("([:") else "]")
        return at + 1

    def _bang(self, at: int) -> int:
        target = self._target(at + 1)
        if target is None:
            self.out.append("!")  # `_bracket` sees to it where a bracket follows
            return at + 1
        # An image would be fetched without a click, its address telling whatever was put into it.
        closed, raw, end = target
        words = " ".join(["image:", _literal(" ".join(self.text[at + 2 : closed].split()))]).rstrip(": ")
        destination = None if self.in_link else _destination(raw)
        if destination:
            self._bracket(f"[{words}]({destination})")
        else:
            where = f" ({_literal(raw)})" if 0 < len(raw) <= 200 else ""
            self.out.append(f"&#91;{words}{where}&#93;")
        return end

    def _at(self, at: int) -> int:
        # JupyterLab keeps its place in `@@0@@` marks, and fails to render where one has no number of its own.
        self.out.append("&#64;" if self.text[at - 1 : at] == "@" or self.text[at + 1 : at + 2] == "@" else "@")
        return at + 1

    def _tildes(self, at: int) -> int:
        length = len(re.compile("~+").match(self.text, at)[0])  # type: ignore[index]
        self.out.append("&#126;" * length)
        return at + length

    _RULES = {  # noqa: RUF012  # a table of methods, never changed
        "\\": _backslash, "`": _backtick, "$": _dollar, "<": _less_than, "[": _open_bracket,
        "]": _close_bracket, "!": _bang, "@": _at, "~": _tildes,
    }  # fmt: skip
