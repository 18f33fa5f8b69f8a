"""Parts of `benchmarks/vision.py`; timing and error are those of `layers`.

- `arms`: the networks, their routes, a forward and a training step;
- `benchmark`: all of it in order; `report`: the text, from the numbers.
"""
