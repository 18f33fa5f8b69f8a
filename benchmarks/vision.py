"""What does a convolutional network of experts save, in inference and training, beside the dense network?

    python benchmarks/vision.py                             ResNet-18 and VGG-16, batches 1, 32, 128: two minutes
    python benchmarks/vision.py --quick                     ResNet-18, inference of 32 images: seconds
    python benchmarks/vision.py --architectures wrn28_10    only this one
    python benchmarks/vision.py --render FILE.jsonl         the report again, from the raw numbers of a run

The report goes to stdout and, with every raw number beside it, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import rawfile
from visions.arms import ARCHITECTURES, MODES
from visions.benchmark import Choice, run
from visions.report import render

from coterie.models.vision.spec import ImageRouter
from coterie.training.memory import keep_memory

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, report."""
    keep_memory()  # for every arm
    options = _parser().parse_args(arguments)
    if options.render:
        print(render(*rawfile.read(options.render)))
        return
    rawfile.show(measure(_choice(options), options.results))


def measure(choice: Choice, results: Path) -> Path:
    """Run everything; returns the file of raw numbers, with the report beside it as ``.md``."""
    return rawfile.measured("vision", {"seed": choice.seed}, run(choice, rawfile.say), render, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["resnet18", "vgg16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128], metavar="B")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--experts", type=int, default=2, help="of every routed convolution; each has 1/E of the width")
    parser.add_argument(
        "--width", type=float, default=1.0, help="factor on all channels: below 1 for a try, not judged"
    )
    parser.add_argument("--router", choices=get_args(ImageRouter), default="resnet20", help="who looks at the images")
    parser.add_argument("--quick", action="store_true", help="ResNet-18, inference of 32 images, nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


def _choice(options: argparse.Namespace) -> Choice:
    if min(options.batches) < 1 or options.experts < 2 or options.width <= 0:
        sys.exit("--batches must be 1 or more, --experts 2 or more, --width above 0.")
    if options.quick:
        return Choice(
            ("resnet18",), (32,), ("inference",), options.experts, options.width, options.seed, options.router
        )
    return Choice(
        tuple(options.architectures), tuple(options.batches), tuple(options.modes), options.experts, options.width,
        options.seed, options.router,
    )  # fmt: skip


if __name__ == "__main__":
    main()
