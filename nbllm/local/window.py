"""A local model's context window, and what a message takes of it, without loading the model."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbllm.local.load import locate
from nbllm.types import Message

__all__ = ["Window", "window_of"]

AROUND_A_MESSAGE: Final = 8
"""Tokens that a chat template puts around a message, its role among them; templates were seen to take 3 to 6."""


@dataclass(frozen=True, slots=True)
class Window:
    """A context window.

    Attributes:
        tokens: Of prompt and answer together.
    """

    tokens: int
    _tokenizer: Any

    def count(self, message: Message) -> int:
        """How many tokens the message takes at most."""
        return len(self._tokenizer.encode(message.content, add_special_tokens=False).ids) + AROUND_A_MESSAGE


def window_of(name: str) -> Window | None:
    """The window of a model on disk; None where it cannot be told."""
    try:
        source = locate(name)
        folder = source if isinstance(source, Path) else _snapshot(source)
    except Exception:  # noqa: BLE001 - there is no such model, or its name is none; asking it says so
        return None
    return _read(folder) if folder is not None else None


def _snapshot(repo: str) -> Path | None:
    """Where the Hub's cache has the model, as far as it was ever downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json")
    return Path(found).parent if isinstance(found, str) else None


@functools.lru_cache(maxsize=8)
def _read(folder: Path) -> Window | None:
    try:
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text("utf-8"))
        tokens = config.get("text_config", config).get("max_position_embeddings")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - a file that is not there, or not what it should be
        return None
    return Window(tokens, tokenizer) if isinstance(tokens, int) and tokens > 0 else None
