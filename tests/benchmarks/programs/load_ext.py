"""What `import nbllm` and `%load_ext nbllm` cost where IPython and ipywidgets are there: CPU in ms."""

import json
import sys
import time

import ipywidgets  # noqa: F401 - a notebook with widgets has it
from IPython.core.interactiveshell import InteractiveShell

HEAVY = {
    "anthropic",
    "google.genai",
    "google.generativeai",
    "httpx2",
    "huggingface_hub",
    "mistralai",
    "openai",
    "torch",
    "transformers",
}

shell = InteractiveShell.instance()
shell.run_cell("1 + 1", store_history=False)
start = time.process_time()
shell.run_cell("import nbllm\n%load_ext nbllm", store_history=False).raise_error()
cost = time.process_time() - start
print(json.dumps({"ms": 1000 * cost, "heavy": sorted(HEAVY & sys.modules.keys())}))
