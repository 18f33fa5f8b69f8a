"""What does a training step of one mixture-of-experts layer cost: transformers', a dense one, ours under every router?

    python benchmarks/training.py                          two shapes, two dtypes, 512 and 2048 tokens: 10 minutes
    python benchmarks/training.py --quick                  512 tokens of the small shape in float32: a minute
    python benchmarks/training.py --shapes S --tokens 512  only these
    python benchmarks/training.py --render FILE.jsonl      the report again, from the raw numbers of a run

The report goes to stdout and, with every raw number beside it, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rawfile
import torch
from layers.shapes import SHAPES
from trainings.benchmark import Choice, run
from trainings.report import render

from coterie.experts import kernel_problem
from coterie.training.memory import keep_memory

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, report."""
    keep_memory()  # as `coterie train` does, here for every arm
    options = _parser().parse_args(arguments)
    if options.render:
        print(render(*rawfile.read(options.render)))
        return
    rawfile.show(measure(_choice(options), options.results))


def measure(choice: Choice, results: Path) -> Path:
    """Run everything; returns the file of raw numbers, with the report beside it as ``.md``."""
    return rawfile.measured("training", {"kernel": kernel_problem()}, run(choice, rawfile.say), render, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["A", "S"], metavar="SHAPE")
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--quick", action="store_true", help="shape S, 512 tokens, float32, nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


def _choice(options: argparse.Namespace) -> Choice:
    if min(options.tokens) < 1:
        sys.exit("--tokens must be 1 or more.")
    if options.quick:
        return Choice(("S",), (512,), (torch.float32,), options.seed)
    dtypes = tuple(DTYPES[name] for name in options.dtypes)
    return Choice(tuple(options.shapes), tuple(options.tokens), dtypes, options.seed)


if __name__ == "__main__":
    main()
