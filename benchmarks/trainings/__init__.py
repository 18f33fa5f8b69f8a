"""Parts of `benchmarks/training.py`; shapes, peers, timing and limits are those of `layers`.

- `routed`: our layer under every router, each at a stated number of experts per token;
- `benchmark`: all of it in order; `report`: the text, from the numbers.
"""
