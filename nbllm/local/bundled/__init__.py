"""The small demonstration model that comes with nbllm, and the recipe that made it.

``MODEL_DIR`` is an ordinary model folder: ``AutoTokenizer`` and ``AutoModelForCausalLM`` load it as they
would a folder from the HuggingFace Hub. ``python -m nbllm.local.bundled.train`` makes it anew from
``facts.toml`` and ``small_talk.toml``. Nothing heavy is imported here: asking where the model lies costs
nothing.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR"]
