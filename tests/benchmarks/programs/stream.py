"""CPU per token, in µs, of one contender that streams an answer several times; of the whole process, every thread."""

import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS


async def main(
    contender: str, url: str, model: str, tokens: int, requests: int = 8, provider: str = "openai", at_once: int = 1
) -> float:
    """The median over the requests, after two that warm up; each of them is `at_once` streams together."""
    read = await READERS[contender](url, provider)
    whole = "".join(f"tok{i} " for i in range(tokens))

    async def one() -> None:
        pieces: list[str] = []
        await read(model, pieces.append)
        # Who reads less than all of it would win.
        assert "".join(pieces) == whole

    costs = []
    for _ in range(requests + 2):
        start = time.process_time()
        await asyncio.gather(*(one() for _ in range(at_once)))
        costs.append(time.process_time() - start)
    return 1e6 * median(costs[2:]) / tokens / at_once


print(json.dumps({"us": asyncio.run(main(**json.loads(sys.argv[1])))}))
