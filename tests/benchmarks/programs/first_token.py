"""Wall time in ms from the call to the first piece of text, of every contender by turns in one warm process."""

import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS


async def main(url: str, rounds: int, provider: str = "openai", warm_up: int = 20) -> dict[str, list[float]]:
    """The time of each contender in each round."""
    readers = {name: await opened(url, provider) for name, opened in READERS.items()}
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(warm_up + rounds):
        for name, read in readers.items():
            arrived: list[float] = []
            start = time.perf_counter()
            await read("ok-5", lambda _, arrived=arrived: arrived.append(time.perf_counter()))
            times[name].append(1000 * (arrived[0] - start))
    return {name: found[warm_up:] for name, found in times.items()}


print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
