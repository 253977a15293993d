"""Benchmarks: `python -m tests.benchmarks [GROUP …] [--json]`.

A group is a module of this package named in `GROUPS`, with a function `figures()` that yields a `Figure` for each
thing that it measured::

    def figures() -> Iterator[Figure]:
        runs = interleaved({"nbllm": ours, "peer": theirs}, rounds=9)
        yield Figure("what it is", ratio(runs, "nbllm", "peer"), "x the peer", bar=1.5)

What is measured runs in a process of its own (`programs/`), and so does the server, so that the CPU of neither counts
for the other.
"""
