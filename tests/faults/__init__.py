"""The fault matrix: everything that can go wrong with a call, for each hosted provider.

`matrix.py` says what the faults are and what is to come of each; `test_matrix.py` makes them happen; `table.py` writes
the README's table from the same data.
"""
