"""Models on this machine. torch and transformers are imported only here, and only when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbllm.local.load import LoadedModel, cached, registry
from nbllm.local.window import Window, window_of

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["LoadedModel", "LocalModels", "Window"]


class LocalModels:
    """What `manager.huggingface` is: the models on this machine, loaded or on disk.

    A model is named `bundled` (the small one that comes with nbllm), by a folder, or by its Hub id.
    """

    def load(self, name: str | PathLike[str], quantization: str = "none") -> LoadedModel:
        """Load a model and keep it in memory; one that is loaded already is not loaded again.

        Raises:
            ModelLoadError: where it cannot be loaded; the error says what to do.
            MissingExtraError: where the extra `local` is not installed.
        """
        return registry.load(str(name), quantization).info

    def unload(self, name: str | PathLike[str]) -> None:
        """Take a model out of memory; one that is not loaded is left as it is."""
        registry.unload(str(name))

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, the least recently used first."""
        return registry.loaded()

    def cached(self) -> list[str]:
        """The names of the models on disk, the bundled one first."""
        return cached()

    def window(self, name: str | PathLike[str]) -> Window | None:
        """The model's context window, found without loading it; None where it cannot be told."""
        return window_of(str(name))
