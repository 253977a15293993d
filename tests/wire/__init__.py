"""A local server that really speaks the providers' protocols over a socket, and misbehaves on request.

`Wire` runs in a thread of the test process, `python -m tests.wire --port N` as a process of its own. What it
answers is decided by a `Script`, registered for a model's name by the test or taken from the model's name
itself (`SCENARIOS`).
"""

from tests.wire.log import Exchange
from tests.wire.protocol import Protocol
from tests.wire.script import EVERY, SCENARIOS, Refusal, Script, ToolCall, Usage, scenario
from tests.wire.server import MODELS, Wire

__all__ = [
    "EVERY",
    "MODELS",
    "SCENARIOS",
    "Exchange",
    "Protocol",
    "Refusal",
    "Script",
    "ToolCall",
    "Usage",
    "Wire",
    "scenario",
]
