"""Wall time in ms of an answer that the cache holds, from the call to its end, and of its first piece."""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path


async def main(model: str, tokens: int, rounds: int) -> dict[str, list[float]]:
    """The times of each round."""
    from nbllm import ConfigManager, ProviderManager

    times: dict[str, list[float]] = {"first": [], "whole": []}
    with tempfile.TemporaryDirectory() as folder:
        config = ConfigManager(runtime={"cache": "on", "cache_place": str(Path(folder) / "cache.sqlite")})
        async with ProviderManager(config) as manager:
            for turn in range(rounds + 3):
                start, pieces, first = time.perf_counter(), [], 0.0
                stream = await manager.generate_response("Hi", model)
                async for piece in stream:
                    first = first or time.perf_counter()
                    pieces.append(piece)
                end = time.perf_counter()
                assert "".join(pieces) == "".join(f"tok{i} " for i in range(tokens))
                assert stream.cached == (turn > 0)
                if turn > 2:
                    times["first"].append(1000 * (first - start))
                    times["whole"].append(1000 * (end - start))
    return times


os.environ.pop("NBLLM_CACHE", None)
print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
