"""Parts of `benchmarks/surgery.py`.

- `models`: the checkpoints, with random weights, made on the spot;
- `child`: one arm, once, in a process of its own; `process`: its wall time and peak memory;
- `answers`: whether two checkpoints hold the same tensors;
- `factors`: experts as thin matrices against whole ones; `report`: the text, from the numbers.
"""
