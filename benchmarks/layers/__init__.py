"""Parts of `benchmarks/layer.py`.

- `shapes`: the layers that are measured; `arms`: who computes them;
- `answers`: whether all computed the same; `timing`: in turns, from cold caches; `limits`: what the machine can do;
- `benchmark`: all of it in order; `report`: the text, from the numbers.
"""
