"""How fast is one mixture-of-experts layer, beside transformers' and beside a dense layer of the active size?

    python benchmarks/layer.py                             three shapes, two dtypes, forward and backward: 10 minutes
    python benchmarks/layer.py --quick                     one token and 512 tokens of the small shape: a minute
    python benchmarks/layer.py --shapes B --tokens 1 16    only these
    python benchmarks/layer.py --render FILE.jsonl         the report again, from the raw numbers of a run

The report goes to stdout and, with every raw number beside it, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rawfile
import torch
from layers.benchmark import Choice, run
from layers.report import render
from layers.shapes import SHAPES

from coterie.experts import kernel_problem

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, report."""
    options = _parser().parse_args(arguments)
    if options.render:
        print(render(*rawfile.read(options.render)))
        return
    rawfile.show(measure(_choice(options), options.results))


def measure(choice: Choice, results: Path) -> Path:
    """Run everything; returns the file of raw numbers, with the report beside it as ``.md``."""
    return rawfile.measured("layer", {"kernel": kernel_problem()}, run(choice, rawfile.say), render, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["A", "B", "S"], metavar="SHAPE")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 16, 512, 2048], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--forward", action="store_true", help="leave the backward passes out")
    parser.add_argument("--quick", action="store_true", help="shape S with 1 and 512 tokens, nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0, help="seconds to rest after each minute of measuring")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


def _choice(options: argparse.Namespace) -> Choice:
    if min(options.tokens) < 1:
        sys.exit("--tokens must be 1 or more.")
    shapes, tokens = (["S"], [1, 512]) if options.quick else (options.shapes, options.tokens)
    backward = (False,) if options.forward else (False, True)
    return Choice(
        tuple(shapes), tuple(tokens), tuple(DTYPES[d] for d in options.dtypes), backward, options.seed, options.pause
    )


if __name__ == "__main__":
    main()
