"""`--attach`: variables and files that go with a prompt.

A name of the notebook goes before a file of that name. Images and PDFs go as files; what is text (a file of text, a
table as CSV) goes into the prompt as a fenced block, since not every model takes it otherwise. Libraries are known by
what is imported already: a value that none of them made is none of theirs.
"""

from __future__ import annotations

import difflib
import io
import mimetypes
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbllm.errors import UsageError
from nbllm.magics.cells import fenced
from nbllm.magics.interpolate import is_a
from nbllm.types import Attachment

__all__ = ["Attached", "attached"]

MOST: Final = 20_000_000
"""Bytes of a file: what the strictest of the large providers takes within a request."""

MOST_OF_TEXT: Final = 1_000_000
"""Bytes of text: more than the context window of most models."""

KINDS: Final = "an image (PNG, JPEG, GIF, WebP), a PDF, audio, video, or text in UTF-8"

_PNG = b"\x89PNG\r\n\x1a\n"
_BEGINNINGS: Final = (
    (_PNG, "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_LANGUAGES: Final = {".py": "python", ".md": "markdown", ".js": "javascript", ".r": "r", ".txt": "text", ".tsv": "text"}


@dataclass(frozen=True, slots=True)
class Attached:
    """What goes along.

    Attributes:
        files: What goes as files.
        texts: What goes into the prompt, each piece named and fenced.
    """

    files: tuple[Attachment, ...] = ()
    texts: tuple[str, ...] = ()


def attached(names: Sequence[str], namespace: Mapping[str, Any]) -> Attached:
    """The variables and files of these names.

    Args:
        names: Names of variables, or paths.
        namespace: The notebook's names and values.

    Raises:
        UsageError: where there is none of a name, or it cannot be sent.
    """
    files: list[Attachment] = []
    texts: list[str] = []
    for name in names:
        found = _variable(name, namespace[name]) if name in namespace else _file(_path(name, namespace))
        if isinstance(found, Attachment):
            files.append(found)
        else:
            texts.append(found)
    return Attached(tuple(files), tuple(texts))


def _path(name: str, namespace: Mapping[str, Any]) -> Path:
    path = _expanded(name)
    if _is_there(path):
        return path
    known = [word for word in namespace if not word.startswith("_")]
    folder = path.parent
    if _is_there(path.parent):
        known += [str(folder / beside.name) if folder != Path() else beside.name for beside in _some(folder)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"There is no variable and no file {name!r} to attach.", action=f"{hint}A MODEL goes before --attach."
    )


def _some(folder: Path) -> list[Path]:
    try:
        return [entry for entry, _ in zip(folder.iterdir(), range(1000), strict=False)]
    except OSError:
        return []


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a long text, or one with a null character
        return False


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~nobody`
        return Path(name)


# -- variables


def _variable(name: str, value: Any) -> Attachment | str:
    if isinstance(value, (str, Path)):
        return _file_in(name, value)
    if isinstance(value, (bytes, bytearray)):
        kind = _kind(bytes(value))
        if kind is None:
            raise UsageError(f"{name} is bytes of no known kind.", action="Attach a PNG, JPEG, GIF, WebP or PDF.")
        return _checked(Attachment(kind, bytes(value), name + _extension(kind)))
    table = _csv(value)
    if table is not None:
        return _text(f"{name} (as CSV, {len(value):,} row{'' if len(value) == 1 else 's'})", table, "csv")
    try:
        picture = _picture(value)
    except UsageError:
        raise
    except Exception as exc:
        raise UsageError(
            f"{name} could not be drawn: {type(exc).__name__}: {exc}", action="Draw it in a cell of its own first."
        ) from exc
    if picture is None:
        raise UsageError(
            f"{name} is a {type(value).__name__}, which cannot be attached.",
            action=f"Attach a figure, an image, an array, a table or a path; or write {{{name}}} in the prompt.",
        )
    return _checked(Attachment(_kind(picture) or "image/png", picture, f"{name}.png"))


def _file_in(name: str, value: str | Path) -> Attachment | str:
    path = _expanded(str(value))
    if not _is_there(path):
        raise UsageError(
            f"{name} is a {type(value).__name__} that names no file.",
            action=f"To send the text itself write {{{name}}} in the prompt.",
        )
    return _file(path)


def _csv(value: Any) -> str | None:
    if is_a(value, "pandas", "Series") or is_a(value, "polars", "Series"):
        value = value.to_frame()
    if is_a(value, "pandas", "DataFrame"):
        return str(value.to_csv(index=type(value.index).__name__ != "RangeIndex", lineterminator="\n"))
    if is_a(value, "polars", "DataFrame"):
        return str(value.write_csv())
    return None


def _picture(value: Any) -> bytes | None:
    """The bytes of a picture of the value; None where it is none."""
    if is_a(value, "matplotlib.axes", "Axes"):
        value = value.get_figure()
    if is_a(value, "matplotlib.figure", "Figure"):
        drawn = io.BytesIO()
        # Without the version of matplotlib in it: the same figure is the same request.
        value.savefig(drawn, format="png", bbox_inches="tight", metadata={"Software": None})
        return drawn.getvalue()
    if is_a(value, "PIL.Image", "Image"):
        image = value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else value.convert("RGB")
        saved = io.BytesIO()
        image.save(saved, "PNG")
        return saved.getvalue()
    if is_a(value, "numpy", "ndarray"):
        return _of_array(value)
    for method in ("_repr_png_", "_repr_jpeg_"):  # what IPython itself would show it by
        drawn_by = getattr(type(value), method, None)
        shown = drawn_by(value) if callable(drawn_by) else None
        shown = shown[0] if isinstance(shown, tuple) else shown
        if isinstance(shown, bytes) and _kind(shown):
            return shown
    return None


def _of_array(array: Any) -> bytes:
    """An array of pixels as a PNG (ISO/IEC 15948): grey levels, or red, green, blue and perhaps opacity."""
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or 0 in array.shape:
        raise UsageError(
            f"An array of shape {array.shape} is no image.",
            action="Give [height, width], or [height, width, 3 or 4].",
        )
    kind = array.dtype.kind
    if kind == "f" and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round()
    elif kind == "b":
        array = array.astype("uint8") * 255
    elif kind not in "ui" or array.min() < 0 or array.max() > 255:
        raise UsageError(
            f"An array of {array.dtype} with these values is no image.",
            action="Give whole numbers from 0 to 255, or fractions from 0 to 1; or attach a figure of it (plt.imshow).",
        )
    pixels = array.astype("uint8").reshape(array.shape[0], -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each with its filter: none
    colour = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 8, colour, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# -- files


def _file(path: Path) -> Attachment | str:
    if not path.is_file():
        raise UsageError(f"{path} is a {'folder' if path.is_dir() else 'device'}.", action="Attach a file.")
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.", action="Mend its permissions.") from exc
    kind = _kind(data) or _by_name(path)
    if kind is not None:
        return _checked(Attachment(kind, data, path.name))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        # Cut within a character, or no text at all: too large is too large.
        _checked(Attachment("application/octet-stream", data, path.name))
        raise UsageError(f"{path} is of no kind that can be sent.", action=f"Attach {KINDS}.")
    return _text(path.name, text, _LANGUAGES.get(path.suffix.lower(), path.suffix[1:].lower()))


def _kind(data: bytes) -> str | None:
    """The MIME type that the first bytes say."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for beginning, kind in _BEGINNINGS if data.startswith(beginning)), None)


def _by_name(path: Path) -> str | None:
    """The MIME type of sound and film, which begin in too many ways."""
    kind = mimetypes.guess_type(path.name)[0]
    return kind if kind and kind.startswith(("audio/", "video/")) else None


def _extension(kind: str) -> str:
    return "." + kind.rpartition("/")[2]


def _checked(attachment: Attachment) -> Attachment:
    if len(attachment.data) > MOST:
        raise UsageError(
            f"{attachment.name} has more than {MOST // 1_000_000} MB, the most that can be attached.",
            action="Make it smaller.",
        )
    return attachment


def _text(name: str, text: str, language: str) -> str:
    size = len(text.encode("utf-8", "replace"))
    if size > MOST_OF_TEXT:
        raise UsageError(
            f"{name} is {size / 1e6:.1f} MB of text; the most that can be attached is {MOST_OF_TEXT // 1_000_000} MB.",
            action="Attach a part of it.",
        )
    return f"{name}:\n{fenced(text, language if language.isalnum() else '')}"
