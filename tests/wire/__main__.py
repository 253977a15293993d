"""`python -m tests.wire --port N`: the server as a process of its own, for kernels and demos."""

from __future__ import annotations

import argparse
import contextlib

from tests.wire import SCENARIOS, Wire


def main() -> None:
    """Serve until interrupted; the first line printed is the URL."""
    parser = argparse.ArgumentParser(prog="python -m tests.wire", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    arguments = parser.parse_args()
    with Wire(arguments.port) as wire, contextlib.suppress(KeyboardInterrupt):
        print(wire.url, flush=True)
        print(
            "models:",
            *SCENARIOS,
            "(NAME-TOKENS-PACEms; GET /__log, POST /__script, /__release, /__clear)",
            flush=True,
        )
        wire.wait_stopped()


if __name__ == "__main__":
    main()
