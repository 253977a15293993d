"""What `--attach` sends of variables and files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nbllm.errors import UsageError
from nbllm.magics import attach
from nbllm.magics.attach import attached

PNG = b"\x89PNG\r\n\x1a\n"


def opened(data: bytes) -> Image.Image:
    """The picture, decoded by a library that nbllm does not use for it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_figure_and_its_axes_become_a_png() -> None:
    """Drawn without pyplot or with it, the same figure gives the same bytes each time."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2, 1))
    ax = fig.subplots()
    ax.plot([1, 3, 2])
    first, again, by_axes = attached(["fig", "fig", "ax"], {"fig": fig, "ax": ax}).files
    assert (first.media_type, first.name) == ("image/png", "fig.png")
    assert first.data == again.data == by_axes.data
    assert opened(first.data).size[0] > 100


@pytest.mark.parametrize(
    ("array", "mode", "pixel"),
    [
        (np.array([[0, 255], [10, 20]], dtype="uint8"), "L", 255),
        (np.array([[0.0, 1.0]]), "L", 255),
        (np.array([[False, True]]), "L", 255),
        (np.array([[[0, 0, 0], [1, 2, 3]]], dtype="int64"), "RGB", (1, 2, 3)),
        (np.array([[[0, 0, 0, 0], [1, 2, 3, 4]]], dtype="uint8"), "RGBA", (1, 2, 3, 4)),
        (np.array([[[0.0], [0.2]]], dtype="float32"), "L", 51),
        (np.zeros((4, 6), dtype="uint8")[::2, ::-1], "L", 0),
    ],
)
def test_an_array_of_pixels_becomes_a_png(array: Any, mode: str, pixel: object) -> None:
    """Grey, colour and opacity, as whole numbers, fractions or truth values; each pixel where it was."""
    (file,) = attached(["x"], {"x": array}).files
    image = opened(file.data)
    assert (image.mode, image.size) == (mode, (array.shape[1], array.shape[0]))
    assert image.getpixel((1, 0)) == pixel


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3), "shape (3,) is no image"),
        (np.zeros((3, 3, 2)), "shape (3, 3, 2) is no image"),
        (np.zeros((0, 3)), "is no image"),
        (np.array([[0.0, 2.0]]), "float64 with these values"),
        (np.array([[0, 256]]), "int64 with these values"),
        (np.array([["a", "b"]]), "with these values"),
        (np.array([[np.nan, 0.5]]), "float64 with these values"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: Any, said: str) -> None:
    """Shapes and values that could be meant in several ways are not guessed at."""
    with pytest.raises(UsageError) as caught:
        attached(["x"], {"x": array})
    assert said in str(caught.value)
    assert caught.value.action


def test_pictures_of_other_kinds_go_as_they_are_or_as_png() -> None:
    """PIL images of every mode, bytes by their first bytes, and what shows itself as a PNG."""

    class Drawing:
        def _repr_png_(self) -> bytes:
            return PNG + b"x"

    jpeg = io.BytesIO()
    Image.new("RGB", (2, 2)).save(jpeg, "JPEG")
    namespace = {
        "cmyk": Image.new("CMYK", (3, 2)),
        "photo": jpeg.getvalue(),
        "paper": b"%PDF-1.7 x",
        "drawing": Drawing(),
        "webp": b"RIFF\0\0\0\0WEBPx",
    }
    files = attached(list(namespace), namespace).files
    assert [file.media_type for file in files] == [
        "image/png",
        "image/jpeg",
        "application/pdf",
        "image/png",
        "image/webp",
    ]
    assert [file.name for file in files] == ["cmyk.png", "photo.jpeg", "paper.pdf", "drawing.png", "webp.webp"]
    assert opened(files[0].data).mode == "RGB"
    assert files[1].data == jpeg.getvalue()


def test_a_table_goes_as_csv_in_the_prompt() -> None:
    """Text goes into the prompt, fenced, so that every model takes it; an index that says something goes along."""
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y,z"]})
    named = frame.set_index("b")["a"]
    first, second = attached(["frame", "named"], {"frame": frame, "named": named}).texts
    assert first == 'frame (as CSV, 2 rows):\n```csv\na,b\n1,x\n2,"y,z"\n```'
    assert second == 'named (as CSV, 2 rows):\n```csv\nb,a\nx,1\n"y,z",2\n```'


def test_files_are_known_by_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG under any name is one; text is fenced so that no fence in it ends it; `~` and names with spaces work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.dat").write_bytes(PNG + b"x")
    (tmp_path / "notes.md").write_text("````\nü\n````\n", "utf-8")
    (tmp_path / "code.py").write_text("x = 1\n", "utf-8-sig")
    (tmp_path / "talk.mp3").write_bytes(b"\xff\xfb\x90x")
    found = attached(["a b.dat", "~/notes.md", "code.py", "talk.mp3"], {})
    assert [(file.media_type, file.name) for file in found.files] == [
        ("image/png", "a b.dat"),
        ("audio/mpeg", "talk.mp3"),
    ]
    assert found.texts == (
        "notes.md:\n`````markdown\n````\nü\n````\n`````",
        "code.py:\n```python\nx = 1\n```",
    )


def test_a_variable_goes_before_a_file_and_a_path_in_one_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notebook's own name is meant; a str or a Path in it names a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo").write_bytes(PNG + b"file")
    (tmp_path / "other").write_bytes(PNG + b"other")
    namespace = {"photo": PNG + b"variable", "path": Path("other"), "text": "other"}
    files = attached(["photo", "path", "text"], namespace).files
    assert [file.data for file in files] == [PNG + b"variable", PNG + b"other", PNG + b"other"]
    assert attached(["photo"], {}).files[0].data == PNG + b"file"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("figg", "no variable and no file 'figg' to attach. Did you mean fig? A MODEL goes before --attach."),
        ("data.cvs", "Did you mean data.csv?"),
        ("sub/nots.txt", "Did you mean sub/notes.txt?"),
        ("openai:m", "A MODEL goes before --attach"),
        ("x" * 5000, "no variable and no file"),
        ("a\0b/c", "no variable and no file"),
        ("~nobody-of-this-name/x", "no variable and no file"),
        ("number", "number is a int, which cannot be attached. Attach a figure"),
        ("prose", "prose is a str that names no file. To send the text itself write {prose} in the prompt."),
        ("long", "long is a str that names no file"),
        ("null", "null is a str that names no file"),
        ("sub", "sub is a folder. Attach a file."),
        ("pipe", "pipe is a device. Attach a file."),
        ("unknown", "unknown is bytes of no known kind"),
        ("program", "program is of no kind that can be sent. Attach an image"),
        ("latin", "latin is of no kind that can be sent"),
        ("broken", "broken could not be drawn: ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_what_cannot_be_attached_is_said(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is answered with the nearest name, what is of the wrong kind with what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("x")
    (tmp_path / "data.csv").write_text("x")
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    os.mkfifo(tmp_path / "pipe")

    class Broken:
        def _repr_png_(self) -> bytes:
            return bytes([1 // 0])

    namespace = {"fig": PNG, "number": 1, "prose": "Hello", "long": "x" * 5000, "null": "\0", "unknown": b"x"}
    with pytest.raises(UsageError) as caught:
        attached([name], {**namespace, "broken": Broken()})
    assert said in str(caught.value)


def test_what_is_too_large_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a film nor a log file is sent by mistake; no more than the limit is read."""
    monkeypatch.setattr(attach, "MOST", 1_000_000)
    monkeypatch.setattr(attach, "MOST_OF_TEXT", 100_000)
    large, text = tmp_path / "film.mp4", tmp_path / "a.log"
    large.write_bytes(b"\0" * 1_000_001)
    text.write_bytes("ü".encode() * 100_000)
    cases = {
        str(large): "film.mp4 has more than 1 MB, the most that can be attached. Make it smaller.",
        str(text): "a.log is 0.2 MB of text; the most that can be attached is 0 MB.",
        "frame": "frame (as CSV, 100,000 rows) is",
        "data": "data.png has more than 1 MB",
    }
    namespace = {"frame": pd.DataFrame({"a": range(100_000)}), "data": PNG + b"\0" * 1_000_000}
    for name, said in cases.items():
        with pytest.raises(UsageError) as caught:
            attached([name], namespace)
        assert said in str(caught.value)
