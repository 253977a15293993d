"""Model text in front of the renderers that Jupyter has: nbconvert's mistune and markdown-it, raw HTML alive.

JupyterLab's own (marked behind its math pass) is asked in `tests/browser/test_safe_browser.py`.
"""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from nbllm.display.safe import is_safe_url, safe_markdown, safe_text
from tests.display.attacks import ATTACKS, FRAGMENTS, compositions

RENDERERS = {"nbconvert": markdown2html_mistune}
try:  # VS Code's parser, in Python
    import markdown_it
except ImportError:
    pass
else:
    RENDERERS["commonmark"] = markdown_it.MarkdownIt("commonmark", {"html": True}).render
    RENDERERS["gfm"] = markdown_it.MarkdownIt("js-default", {"html": True}).render

ALLOWED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["p", "ul", "blockquote", "pre", "em", "strong", "del", "s", "table", "thead", "tbody",
    "tr", "hr", "br", "sub", "sup", "kbd", "dl", "dt", "dd"], ()),
    **dict.fromkeys(["h1", "h2", "h3", "h4", "h5", "h6"], ("id",)),
    **dict.fromkeys(["code", "span", "div", "li"], ("class",)),
    **dict.fromkeys(["th", "td"], ("style",)),
    "ol": ("start",),
    "a": ("href", "class"),
    "input": ("type", "disabled", "checked", "class"),  # a task list's box
}  # fmt: skip
VALUES = {
    "href": re.compile(r"(?:https?://|mailto:|#)", re.IGNORECASE),
    "style": re.compile(r"text-align: ?\w+;?$"),
    "class": re.compile(
        r"(?:language-(?!mermaid)[\w+#.-]+|highlight|hl-[\w+#.-]+|\w{1,3}|anchor-link"
        r"|task-list-item(-checkbox)?)$"
    ),
}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: what is not on the allow-list, its text, its code blocks."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.dangers: list[str] = []
        self.text, self.tags = "", []
        self.code: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ALLOWED:
            self.dangers.append(f"<{tag}>")
        for name, value in attrs:
            known = VALUES.get(name)
            if name not in ALLOWED.get(tag, ()) or (known and not known.match(value or "")):
                self.dangers.append(f"<{tag} {name}={value!r}>")
        if tag in ("pre", "code"):
            if not self._open:
                self.code.append("")
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data):
        self.text += data
        if self._open:
            self.code[-1] += data

    def handle_comment(self, data):
        self.dangers.append(f"<!--{data}-->")

    def handle_decl(self, decl):
        self.dangers.append(f"<!{decl}>")

    def handle_pi(self, data):
        self.dangers.append(f"<?{data}>")

    def unknown_decl(self, data):
        self.dangers.append(f"<![{data}]>")


def pages(markdown: str) -> dict[str, Page]:
    return {name: Page(render(markdown)) for name, render in RENDERERS.items()}


def assert_harmless(text: str) -> None:
    once = safe_markdown(text)
    for markdown in (once, safe_markdown(once)):
        for name, page in pages(markdown).items():
            assert not page.dangers, f"{name} makes {page.dangers} of {markdown!r} (from {text!r})"


# Attacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attack_is_harmless(attack):
    """No attack leaves an element, an attribute or an address that is not on the allow-list."""
    assert_harmless(attack)
    assert_harmless(f"Some text\n{attack}\nmore text\n\n```python\nx = '<b>'\n```\n{attack}")
    assert_harmless(f"- item\n\n  {attack}\n\n  ```html\n  <script>1</script>\n  ```\n> {attack}")


def test_attacks_work_on_the_raw_text():
    """The renderers used here do leave raw HTML alive, so that the tests above can fail."""
    for name, render in RENDERERS.items():
        assert Page(render(ATTACKS["a script element"])).dangers, name
    assert Page(RENDERERS["nbconvert"](ATTACKS["a display that eats a fence"])).dangers


def test_random_compositions_are_harmless():
    """Hostile fragments in any order stay harmless."""
    for text in compositions(seed=1, count=300):
        assert_harmless(text)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=20).map("".join))
@example("`\n>a`" * 20)
@example("$\\$" * 30)
def test_hypothesis_finds_no_composition_that_hurts(text):
    """Hypothesis finds no composition of hostile fragments and arbitrary characters that hurts."""
    assert_harmless(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_is_taken(text):
    """Any str is taken, lone surrogates included, and the result can be sent as UTF-8."""
    safe_markdown(text).encode()
    safe_text(text).encode()


def test_images_become_links():
    """An image's address shows, and is fetched only by a click."""
    assert safe_markdown("![a plot](https://example.org/p.png)") == "[image: a plot](https://example.org/p.png)"
    for text in (
        "![a](https://x.org/p)",
        "![a][r]\n\n[r]: https://x.org/p",
        "[![a](https://x.org/p)](https://y.org)",
    ):
        assert all("img" not in page.tags for page in pages(safe_markdown(text)).values())


def test_an_unsafe_link_shows_as_it_is_spelled():
    """A javascript link shows its address in place of being one."""
    for page in pages(safe_markdown("[click me](javascript:alert(1))")).values():
        assert "[click me](javascript:alert(1))" in page.text
        assert "a" not in page.tags


def test_prose_shows_html():
    """HTML in prose shows to the letter."""
    for page in pages(safe_markdown("Use <script>x</script> and List<int> &amp; a<b.")).values():
        assert "Use <script>x</script> and List<int> & a<b." in page.text


@pytest.mark.parametrize(
    ("info", "language"),
    [
        ("mermaid", "text"),
        ("Mermaid x", "text"),
        ('x"y=z', "x"),
        ("{python} title=1", "python"),
        ("c++", "c++"),
    ],
)
def test_a_fence_keeps_only_the_name_of_its_language(info, language):
    """The info string ends in an attribute, so only a plain word is kept; mermaid would fetch by itself."""
    assert safe_markdown(f"```{info}\nx\n```") == f"```{language}\nx\n```"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://example.org/a?b=1&c=2#d", True), ("http://localhost:8888/", True), ("mailto:a@b.org", True),
        ("HTTPS://EXAMPLE.ORG", True), ("#part", True), ("", False), ("javascript:x", False),
        ("JaVaScript:x", False),
        ("java\nscript:x", False), ("\x01javascript:x", False), (" https://x.org", False),
        ("https://a@b.org", False),
        ("https:x", False), ("https:///x", False), ("https:\\\\x.org", False), ("//x.org", False),
        ("/files/x.html", False), ("x.md", False), ("data:text/html,x", False), ("vbscript:x", False),
        ("file:///etc/passwd", False), ("https://x.org/\u202egnp", False), ("java&#115;cript:x", False),
        ("command:x", False), ("blob:https://x.org/1", False),
    ],
)  # fmt: skip
def test_is_safe_url(url, safe):
    """Links go to the web, to a mail address or within the page, and nowhere else."""
    assert is_safe_url(url) is safe


# Characters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"), ("\x1b]0;title\x07x", "]0;titlex"), ("\x9b2Jx", "x"),
        ("a\x08\x08b", "ab"),
        ("yes\rno", "yes\nno"), ("a\r\nb", "a\nb"), ("bell\x07", "bell"), ("\x1bPq\x1b\\", "Pq\\"),
        ("\u202egnp.exe", "gnp.exe"), ("\u2066a\u2069", "a"), ("a\u200fb", "a\u200fb"), ("\ud800", "\ufffd"),
        ("a\tb\n", "a\tb\n"), ("\x1b\x1b[31m[31mx", "[31mx"), ("a\x85b\u2028c", "a\nb\nc"), ("日本", "日本"),
    ],
)  # fmt: skip
def test_safe_text_stops_terminal_escapes(text, expected):
    """No escape sequence, backspace, overwriting return or reversal of direction reaches a terminal."""
    assert safe_text(text) == expected
    assert safe_text(expected) == expected


def test_markdown_loses_control_characters_in_code_too():
    """Code is cleaned too: a reversal of direction makes it read other than it runs (Trojan Source)."""
    assert safe_markdown("```\na\u202e\x1b[1mb\n```\n`\u2066x`") == "```\nab\n```\n\n`x`"


# What models write ------------------------------------------------------------------------------

UNCHANGED = [
    "# Title\n\nText with *emphasis*, **strong**, ~~struck~~, `code`, and a < b > c, 5 <6, <- and <=.",
    "- a\n- b\n  - c\n    - d\n1. e\n2. f\n\n- [x] done\n- [ ] open",
    "| a | b |\n|---|:-:|\n| `x` | y<br>z |",
    "> quoted\n> more\n>\n> > nested",
    "```python\ndef f(x: list[int]) -> str:\n    return f'{x}'\n```",
    "Text\n\n```html\n<script>alert('$x')</script>\n<!-- & &amp; -->\n```\n\nmore",
    "1. Run:\n\n   ```html\n   <b>x</b>\n   ```\n\n2. And:\n   ```bash\n   pip install x\n   ```",
    "$a + b$, $$x_1 = \\frac{1}{2}$$ and\n\n$$\nE = mc^2\n$$",
    "\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}",
    "[a](https://example.org/x?y=1&z=2), [b](mailto:a@b.org), [c](#part), https://example.org/a_b",
    "Wow!! Really! H<sub>2</sub>O, x<sup>2</sup>, <kbd>Ctrl</kbd>  \nhard break\\\nand another",
    "It costs $5.",
    "A note[^1] with arr[0] — “quotes” 😀 C:\\dir \\* \\_ &copy; @decorator a@b.org",
    "Term `x < y`, `` a ` b ``, `{% raw %}`, `\\n`.",
    "---\n\nSetext\n======",
]


@pytest.mark.parametrize("text", UNCHANGED)
def test_ordinary_markdown_is_unchanged(text):
    """What needs no change gets none."""
    assert safe_markdown(text) == text


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_was_written_is_not_written_again(text):
    """A second application leaves the result of the first as it is."""
    hostile = text + "\n\n`List<int>` costs $5 and $6, ![x](https://x.org/y) \\(a<b\\) <b>\n~~~x y\n$1\n~~~\nend"
    once = safe_markdown(hostile)
    assert safe_markdown(once) == once


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("`List<T>` and `<b>`", ["List<T>", "<b>"]),
        ("`$HOME` or `$$`, `a\\\\b`, `\\begin{x}`", ["$HOME", "$$", "a\\\\b", "\\begin{x}"]),
        ("`` `<b>` ``", ["`<b>`"]),
        ("`a[0](b)` and `![x](y)`", ["a[0](b)", "![x](y)"]),
        ("``` `` <i> ```", ["`` <i>"]),
        ("~~~html\n<b>\n```\n~~~", ["<b>\n```\n"]),
        ("Text:\n```html\n<b>\n```\ntext", ["<b>\n"]),
        ("````md\n```py\nx = '<b>'\n```\n````", ["```py\nx = '<b>'\n```\n"]),
        ("- a\n  - b\n    ```html\n    <b>\n      <i>\n\n    </b>\n    ```\n  - c", ["<b>\n  <i>\n\n</b>\n"]),
        ("1. a\n   ```sh\n   echo $A <b>\n   echo $B\n   ```\n2. c", ["echo $A <b>\necho $B\n"]),
        ("- ```html\n  <b>\n  ```", ["<b>\n"]),
        ("> ```html\n> <b>$x\n> ```", ["<b>$x\n"]),
        ("> ```py\n> x\n> ```", ["x\n"]),
        ("text\n\n    <b>\n      x\n\n    y\n\ntext", ["<b>\n  x\n\ny\n"]),
        ("```html\n<b>", ["<b>\n"]),
        ("```make\nall:\n\techo <b>\n```", ["all:\n\techo <b>\n"]),
    ],
)
def test_code_shows_to_the_letter(text, code):
    """Code holds the same characters in every renderer, whatever they are."""
    for name, page in pages(safe_markdown(text)).items():
        assert [block.rstrip("\n") for block in page.code] == [block.rstrip("\n") for block in code], name


def test_code_in_a_table_keeps_its_pipe():
    """A pipe in code in a table, escaped as GFM wants it, shows as a pipe."""
    for page in pages(safe_markdown("| a |\n|---|\n| `x<T> \\| y` |")).values():
        assert "x<T> | y" in page.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\(a\\) and \\[b\\]", "$a$ and $$b$$"),
        ("\\\\(a\\\\) and \\\\[b\\\\]", "$a$ and $$b$$"),
        ("$a<b$", "$a< b$"),
        ("$ \\alpha $", "$\\alpha$"),
        ("$5 and $6", "<span>&#36;</span>5 and <span>&#36;</span>6"),
        ("\\$5, so $x$", "<span>&#36;</span>5, so $x$"),
    ],
)
def test_math_is_what_the_model_meant(text, expected):
    """TeX's own brackets become the dollars that all renderers know, and prices are no formulas."""
    assert safe_markdown(text) == expected


def test_references_are_resolved():
    """A link by reference becomes the same link inline; a definition that serves none shows."""
    text = "See [the site][s] and [s].\n\n[s]: https://example.org 'title'\n[t]: https://example.org/t"
    safe = safe_markdown(text)
    assert "[the site](https://example.org) and [s](https://example.org)." in safe
    assert "'title'" not in safe
    assert all("[t]: https://example.org/t" in page.text for page in pages(safe).values())


# Cost -------------------------------------------------------------------------------------------

HOSTILE = {
    "backticks": "`", "brackets": "[", "less-than": "<", "image": "![", "links": "[](", "titles": '[](x "',
    "open titles": "[](x '", "nested": "[[](x)", "dollars": "$", "escaped dollars": "$\\$", "prices": "$1 ",
    "parens": "\\(", "environments": "\\begin{a}", "definitions": "[a]: x\n", "fences": "```\n",
    "quotes": "> ",
    "mixed runs": "`a``b```c", "table": "|-", "spaces": " ", "autolinks": "<https://", "tildes": "~~~ ",
    "escapes": "\x1b[",
    "code tags": "<code>", "lists": "- ", "tabs": "\t", "autolink mail": "<a.", "quoted fences": "> ```\n",
    "closing": "]", "code": "`<`", "lines": "a\n", "at": "@@",
}  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_is_linear(unit):
    """Four times the text takes about four times as long, not sixteen."""

    def cost(size: int) -> float:
        text = unit * (size // len(unit)) + "x"
        start = time.process_time()
        safe_markdown(text)
        return time.process_time() - start

    small = min(cost(50_000) for _ in range(2))
    large = min(cost(200_000) for _ in range(2))
    assert large < 10 * max(small, 0.005)


def test_deep_nesting_is_taken():
    """Brackets in brackets and quotes in quotes exhaust neither stack nor time."""
    for text in (
        "[" * 100_000 + "]" * 100_000,
        ">" * 50_000,
        "- " * 50_000 + "x",
        "[" * 50_000 + "](https://x.org)" * 50_000,
    ):
        safe_markdown(text)


def test_import_is_light():
    """The module loads no parser, no IPython, and little else."""
    code = (
        "import sys; before = set(sys.modules); import nbllm.display.safe; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"IPython", "markdown_it", "mistune", "html", "ipywidgets"} & set(loaded)
