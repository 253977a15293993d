"""CPU per token, in µs, of one contender that streams an answer several times; of the whole process, every thread."""

import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS


async def main(contender: str, url: str, model: str, tokens: int, requests: int = 8) -> float:
    """The median over the requests, after two that warm up."""
    read = await READERS[contender](url)
    costs = []
    for _ in range(requests + 2):
        pieces: list[str] = []
        start = time.process_time()
        await read(model, pieces.append)
        costs.append(time.process_time() - start)
        # Who reads less than all of it would win.
        assert "".join(pieces) == "".join(f"tok{i} " for i in range(tokens))
    return 1e6 * median(costs[2:]) / tokens


print(json.dumps({"us": asyncio.run(main(**json.loads(sys.argv[1])))}))
