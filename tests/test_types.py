"""The data that crosses borders."""

import dataclasses
import inspect
from typing import Any

import pytest

from nbllm import types
from nbllm.types import Usage

CLASSES = [value for name in types.__all__ if inspect.isclass(value := getattr(types, name))]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_types_are_frozen_and_slotted(cls: type) -> None:
    """What is handed between threads cannot change, and has no room for anything else."""
    assert cls.__dataclass_params__.frozen
    assert "__dict__" not in dir(cls)


def test_a_later_usage_replaces_what_it_knows_better() -> None:
    """Providers report totals, some of them piece by piece."""
    first = Usage(input_tokens=5, output_tokens=1)
    assert first.updated(Usage(output_tokens=9)) == Usage(input_tokens=5, output_tokens=9)
    assert first.total_tokens == 6
    assert Usage(input_tokens=5).total_tokens is None


def test_an_attachment_does_not_show_its_bytes() -> None:
    """A picture's bytes stay out of a repr."""
    assert "secret" not in repr(types.Attachment("image/png", b"secret"))
    assert {field.name for field in dataclasses.fields(types.Attachment)} >= {"data"}


@pytest.mark.parametrize("wrong", ["12", 1.5, -1, True, 2**60, [3]])
def test_what_is_no_count_of_tokens_is_not_known(wrong: Any) -> None:
    """A server may send anything in place of a number; the other counts stay."""
    assert Usage(input_tokens=3, output_tokens=wrong).checked() == Usage(input_tokens=3)
    assert Usage(1, 0, None, 2).checked() == Usage(1, 0, None, 2)
