"""Parts of `benchmarks/decode.py`: `models` makes the contestants, `rounds` times them, `report` tells."""
