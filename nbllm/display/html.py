"""A model's HTML in a frame in which it can do nothing: no script, no form, no request, no way out.

The frame's sandbox and content security policy hold that alone. What they leave open (hints by which a browser looks up
hosts in advance) is taken out first, with all that is no part of a page that only shows something.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Final

from nbllm.display.safe import safe_text

__all__ = ["sandboxed"]

HEIGHT: Final = 400
"""Pixels; the frame cannot say how high it would like to be."""

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

TAGS: Final = frozenset(
    """
    a abbr address article aside b bdi bdo blockquote br caption center cite code col colgroup data dd del details dfn
    div dl dt em fieldset figcaption figure font footer
    h1 h2 h3 h4 h5 h6 header hgroup hr i img ins kbd label legend li main
    mark meter nav ol p pre progress q rp rt ruby s samp section small span strike strong style sub summary sup table
    tbody td tfoot th thead time title tr tt u ul var wbr
    svg g path rect circle ellipse line polyline polygon text tspan defs lineargradient radialgradient stop clippath
    marker pattern desc
    """.split()  # noqa: SIM905 - a list of a hundred quoted words would be no easier to read
)
"""Elements that are kept; of others, their content is."""

UNSEEN: Final = frozenset({"script", "template", "iframe", "noembed", "noframes", "xmp"})
"""Elements whose content goes with them."""

VOID: Final = frozenset({"br", "col", "hr", "img", "wbr"})

_DATA = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9-]*")
_NEVER = frozenset(
    {
        "action",
        "autofocus",
        "background",
        "data",
        "formaction",
        "manifest",
        "ping",
        "poster",
        "srcdoc",
        "srcset",
        "target",
    }
)


def sandboxed(text: str) -> str:
    """HTML that shows `text`, a page or a piece of one, in a frame: styled, and dead.

    Links lead nowhere but to places in the page. Takes any str.
    """
    page = (
        f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta http-equiv="x-dns-prefetch-control" content="off"><meta name="referrer" content="no-referrer">'
        f"<body style='margin:8px;background:#fff;color:#111;font-family:sans-serif'>{_clean(text)}"
    )
    style = f"width:100%;height:{HEIGHT}px;border:1px solid #bdbdbd;border-radius:3px;background:#fff"
    return (
        f'<iframe sandbox="" referrerpolicy="no-referrer" title="HTML of the answer" style="{style}" '
        f'srcdoc="{_quoted(page)}"></iframe>'
    )


def _quoted(text: str) -> str:
    # JupyterLab looks for formulas in HTML outputs; none may begin within the attribute.
    return html.escape(text).replace("$", "&#36;").replace("\\", "&#92;")


def _clean(text: str) -> str:
    cleaner = _Cleaner()
    cleaner.feed(safe_text(text))
    cleaner.close()
    return "".join(cleaner.out)


class _Cleaner(HTMLParser):
    """Writes what it reads again: elements and attributes that are known, text escaped, nothing else."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self._unseen: list[str] = []
        self._style = False

    def parse_html_declaration(self, i: int) -> int:
        # Of what begins with `<!`, only comments are known; the parser's own way raises for some of the rest.
        return self.parse_comment(i) if self.rawdata.startswith("<!--", i) else self.parse_bogus_comment(i)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._unseen.append(tag)
        if self._unseen or tag not in TAGS:
            return
        self._style = tag == "style"
        kept = "".join(f' {name}="{_quoted(value or "")}"' for name, value in attrs if _is_kept(tag, name, value or ""))
        self.out.append(f"<{tag}{kept}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            return
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            if tag in self._unseen:
                del self._unseen[self._unseen.index(tag) :]
            return
        if tag in TAGS and tag not in VOID:
            self._style = False
            self.out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        # In a style sheet nothing is escaped, and its content holds no end tag: the parser would have seen it.
        self.out.append(data.replace("<", "") if self._style else html.escape(data, quote=False))


def _is_kept(tag: str, name: str, value: str) -> bool:
    if not _ATTRIBUTE.fullmatch(name) or name.startswith("on") or name in _NEVER:
        return False
    if name == "href":
        return value.startswith("#")
    if name == "src":
        return tag == "img" and _DATA.fullmatch(value.strip()) is not None
    return True
