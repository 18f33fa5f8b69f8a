"""How fast is a model whose experts do not fit, and how does that compare with its peers at equal memory?

    python benchmarks/offload.py                             5 GiB of weights in 3 GiB; needs root (a memory group)
    python benchmarks/offload.py --scale small --no-limit    a smoke run of some minutes; nothing is judged
    python benchmarks/offload.py --make-only                 write the model and stop
    python benchmarks/offload.py --render FILE.jsonl         the report again, from the raw numbers of a run

The report goes to stdout and, with every raw number beside it, to benchmarks/results/. Ctrl-C reports what
is there; a run that was killed can still be rendered.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from offloading.arms import ARMS
from offloading.benchmark import Choice, prepare, render_file, run
from offloading.routes import KINDS
from offloading.scales import SCALES
from rawfile import say

from coterie.units import parse_bytes

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Parse, run, report."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end reports what is there, as Ctrl-C does
    try:
        if options.render:
            print(render_file(options.render))
            return
        choice = _choice(options)
        if options.make_only:
            say(f"The model is in {prepare(choice, say).checkpoint}")
            return
        raw = run(choice, options.results, say)
        print(raw.with_suffix(".md").read_text())
        say(f"Written: {raw.with_suffix('.md')} and {raw.name}")
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--limit", metavar="SIZE", help="of the memory group (default: the scale's, 3GiB)")
    parser.add_argument("--no-limit", action="store_true", help="no memory group: no root needed, nothing is judged")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--routes", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=8, metavar="TOKENS")
    parser.add_argument("--decode", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "coterie-bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--make-only", action="store_true", help="write the model and stop")
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


def _choice(options: argparse.Namespace) -> Choice:
    scale = SCALES[options.scale]
    limit = 0 if options.no_limit else parse_bytes(options.limit) if options.limit else scale.limit
    return Choice(
        scale, limit, tuple(options.arms), tuple(options.routes), options.repeats, options.prompt, options.decode,
        options.seed, options.work,
    )  # fmt: skip


if __name__ == "__main__":
    main()
