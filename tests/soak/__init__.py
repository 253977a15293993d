"""What takes too long for pytest: `python -m tests.soak [PART …] [--times N]`.

A part is a module of this package named in `PARTS`, with a function `run(report)` that prints its figures through the
report and checks what must hold.
"""
