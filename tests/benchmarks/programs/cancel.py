"""Wall time in ms from cancelling a stream to its closed socket, by the clock that server and client share."""

import asyncio
import json
import sys
import time
import urllib.request


async def main(url: str, provider: str, rounds: int) -> list[float]:
    """The time of each round."""
    from nbllm import ProviderManager

    times: list[float] = []
    async with ProviderManager() as manager:
        for _ in range(rounds):
            stream = await manager.generate_response("Hi", f"{provider}:slow")
            await anext(stream)
            start = time.monotonic()
            stream.cancel()
            times.append(1000 * (await asyncio.to_thread(_left, url, len(times) + 1) - start))
    return times


def _left(url: str, n: int) -> float:
    """When the last of n clients had left."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{url}/__log") as answer:
            ended = [r["ended"] for r in json.load(answer)["requests"] if r["outcome"] == "client_closed"]
        if len(ended) >= n:
            return float(ended[-1])
        time.sleep(0.005)
    raise TimeoutError("the server did not see the client leave")


print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
