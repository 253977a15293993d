"""Finding a model on this machine or on the Hub, and keeping it in memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbllm.errors import MissingExtraError, ModelLoadError
from nbllm.local.bundled import MODEL_DIR

__all__ = ["BUNDLED", "LoadedModel", "Resident", "cached", "registry", "revision"]

BUNDLED: Final = "bundled"
"""The name of the model that comes with nbllm."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        name: The name it was loaded by.
        device: Where it lies: `cpu`, `cuda:0`, `mps:0`.
        dtype: Of what its weights are, such as `float32`.
        quantization: How they are quantized, or `none`.
        parameters: How many it has.
        memory_bytes: What its weights and buffers take.
        context_window: Tokens of prompt and answer together.
    """

    name: str
    device: str
    dtype: str
    quantization: str
    parameters: int
    memory_bytes: int
    context_window: int


@dataclass(slots=True)
class Resident:
    """A model in memory with its tokenizer. `lock` is held while it generates: one answer at a time."""

    info: LoadedModel
    model: Any
    tokenizer: Any
    lock: threading.Lock


class Registry:
    """The models in memory, one of each: explicit and on-demand loads share them."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Resident] = OrderedDict()
        self._loading = threading.Lock()

    def load(self, name: str, quantization: str = "none") -> Resident:
        """The model, loaded unless it is already."""
        source = locate(name)
        key = str(source)
        with self._loading:  # two cells that want the same model wait for one load
            if (resident := self._models.get(key)) is None:
                resident = self._models[key] = _load(name, source, quantization)
            elif resident.info.quantization != quantization:
                raise ModelLoadError(
                    f"{name} is loaded with quantization {resident.info.quantization}.",
                    action=f"Unload it first: manager.huggingface.unload({name!r}).",
                )
            self._models.move_to_end(key)
            return resident

    def unload(self, name: str) -> None:
        """Forget the model and return its memory; an answer under way finishes first."""
        with self._loading:
            resident = self._models.pop(str(locate(name)), None)
        if resident is None:
            return
        with resident.lock:
            resident.model = resident.tokenizer = None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()
        # glibc keeps freed memory; without this the process stays as large as it was (measured).
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def loaded(self) -> list[LoadedModel]:
        """What is in memory, the least recently used first."""
        return [resident.info for resident in list(self._models.values())]


registry: Final = Registry()


def locate(name: str) -> Path | str:
    """The folder that a name means, or the Hub id where it means none.

    Raises:
        ModelLoadError: where the name is a path at which there is no model.
    """
    if name == BUNDLED:
        return MODEL_DIR
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    looks_like_a_path = path.is_absolute() or name.startswith((".", "~")) or path.is_dir() or name.count("/") > 1
    if looks_like_a_path:
        raise ModelLoadError(
            f"There is no model in {name}: it has no config.json.",
            action="Give the folder that `save_pretrained` wrote, or a Hub id such as org/model.",
        )
    return name


def revision(name: str) -> str | None:
    """What tells one state of a model's files from another: the Hub's commit, or a hash; None where it is not here."""
    source = locate(name)
    if not isinstance(source, Path):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source, "config.json")
        return Path(found).parent.name if isinstance(found, str) else None
    if name == BUNDLED:  # the same on every machine, so its content counts
        return _content(source / "model.safetensors")
    # A folder of gigabytes is not read for this.
    files = sorted(file for file in source.iterdir() if file.suffix in (".safetensors", ".json", ".jinja"))
    told = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


@functools.cache
def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def cached() -> list[str]:
    """The names of the models on disk: the bundled one, then those in the Hub's cache."""
    names = [BUNDLED]
    try:
        from huggingface_hub import CacheNotFound, scan_cache_dir

        with contextlib.suppress(CacheNotFound):  # nothing was ever downloaded
            repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
            names += sorted(repo.repo_id for repo in repos if _complete(repo))
    except ImportError:
        pass
    return names


def _complete(repo: Any) -> bool:
    files = {file.file_name for revision in repo.revisions for file in revision.files}
    return "config.json" in files and any(name.endswith(".safetensors") for name in files)


def _load(name: str, source: Path | str, quantization: str) -> Resident:
    if quantization != "none":
        raise ModelLoadError(f"The quantization {quantization!r} is not known.", action='Use quantization="none".')
    torch, transformers = _libraries()
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    # On a CPU bfloat16 was measured slower than float32.
    dtype = torch.float32 if device == "cpu" else "auto"
    with _translated(name), _quiet(transformers):
        # Weights come from strangers: safetensors only, and none of the repository's own code.
        _check_index(source)
        attention = str(transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)._attn_implementation)  # noqa: SLF001
        if "/" in attention:
            raise ModelLoadError(
                f"{name} wants compiled code from the Hub ({attention}), which nbllm does not run.",
                action="Use another.",
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ModelLoadError(
            f"{name} has no chat template: it is a base model that only continues text.",
            action="Use its instruction-tuned version; its name often ends in -Instruct or -it.",
        )
    model.to(device).eval()
    config = model.config.get_text_config()
    info = LoadedModel(
        name=name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization,
        parameters=model.num_parameters(),
        memory_bytes=model.get_memory_footprint(),
        context_window=int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length),
    )
    return Resident(info, model, tokenizer, threading.Lock())


def _check_index(source: Path | str) -> None:
    """Refuse an index that names other files than the model's own safetensors: the library would load what it says."""
    from transformers.utils.hub import cached_file

    index = cached_file(
        source,
        "model.safetensors.index.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is None:
        return
    for name in set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()):
        if not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise ModelLoadError(
                f"The index of its weights names {name!r}, which is no safetensors file of its own.",
                action="Use another model.",
            )


def _libraries() -> tuple[Any, Any]:
    # The one place where torch and transformers are imported.
    try:
        import torch
        import transformers
    except ImportError as exc:
        error = MissingExtraError(exc.name or "torch", "local")
        error.message = f"Models on this machine need {error.library}, which is not installed."
        error.action = f"{error.action} Or set a key, such as OPENAI_API_KEY, and use a hosted model."
        raise error from exc
    return torch, transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bar and no notes of the library among a cell's output; as it was before, afterwards."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """The library's errors in our terms."""
    from huggingface_hub import errors as hub

    try:
        yield
    except ModelLoadError:
        raise
    except Exception as exc:
        causes = [exc]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 20:
            causes.append(cause)  # type: ignore[arg-type]  # a cause that is no Exception ends the search below
        kinds = tuple(type(cause) for cause in causes)
        said = " ".join(str(exc).split())
        if any(issubclass(kind, hub.GatedRepoError) for kind in kinds):
            message, action = (
                f"{name} is gated.",
                f"Ask for access at https://huggingface.co/{name}, set HF_TOKEN.",
            )
        elif any(issubclass(kind, hub.RepositoryNotFoundError) for kind in kinds):
            message, action = (
                f"The Hub has no model {name}.",
                "Check its name, or set HF_TOKEN if it is private.",
            )
        elif any(issubclass(kind, (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError)) for kind in kinds):
            offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
            message = f"{name} is not on this machine, and the Hub {'is turned off' if offline else 'does not answer'}."
            action = "Unset HF_HUB_OFFLINE to download it." if offline else "Check the network."
        elif "safetensors" in said:
            message = f"{name} has no weights as safetensors, and nbllm loads no pickle files."
            action = "Use a version of it that has .safetensors files."
        elif "trust_remote_code" in said:
            message, action = (
                f"{name} needs code of its own repository, which nbllm does not run.",
                "Use another.",
            )
        else:
            message, action = f"{name} cannot be loaded: {said[:300]}", "Check the folder or the Hub id."
        raise ModelLoadError(message, action=action) from exc
