"""How fast does a model that fits in memory generate, one token at a time, beside transformers?

    python benchmarks/decode.py                  5 GiB of weights, twice in memory: 12 GiB, some minutes
    python benchmarks/decode.py --scale small    a smoke run of a minute; nothing is judged
    python benchmarks/decode.py --render FILE.jsonl

The report goes to stdout and, with every raw number beside it, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import rawfile
import torch
from decoding.report import render
from decoding.rounds import compare, timed
from layers.limits import measure as measure_limits
from offloading.checkpoint import make_checkpoint
from offloading.scales import SCALES, Scale

from coterie.experts import kernel_problem

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, report."""
    options = _parser().parse_args(arguments)
    if options.render:
        print(render_file(options.render))
        return
    try:
        raw = run(options)
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
    rawfile.show(raw)


def run(options: argparse.Namespace) -> Path:
    """Make the model, compare, time; returns the file of raw numbers, with the report beside it as ``.md``."""
    from decoding.models import make_arms

    scale = SCALES[options.scale]
    rawfile.say(f"Making the model in {options.work}, unless it is there")
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(options.work, scale)
    positions = options.prompt + options.decode
    arms = make_arms(checkpoint, scale, positions, options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    ids = torch.randint(2, scale.vocab, (1, positions), generator=draw)
    records: list[Any] = [{"kind": "answers", "answers": compare(arms, ids, options.prompt)}]
    right = {name: arm for name, arm in arms.items() if not render_wrong(records[0], name)}
    records += timed(right, ids, options.prompt, options.rounds, rawfile.say)
    return _write(options, scale, records)


def render_wrong(answers: dict[str, Any], arm: str) -> bool:
    """Whether an arm's answers are off: it is not timed then."""
    from decoding.rounds import TOLERANCE

    return not answers["answers"][arm]["error"] <= TOLERANCE


def bytes_per_token(scale: Scale) -> int:
    """Weights that one token reads: all but the embeddings of other tokens and the experts it does not use."""
    embeddings = scale.vocab * scale.hidden * 2
    return scale.dense_bytes - embeddings + scale.uses_per_token * scale.expert_bytes


def _write(options: argparse.Namespace, scale: Scale, records: list[Any]) -> Path:
    theme = "decode" if scale.name == "full" else f"decode-{scale.name}"
    config = {
        "scale": scale.name, "kernel": kernel_problem(), "prompt": options.prompt, "decode": options.decode,
        "rounds": options.rounds, "bytes_per_token": bytes_per_token(scale),
        "bandwidth": measure_limits(torch.bfloat16).bandwidth,
    }  # fmt: skip
    return rawfile.measured(theme, config, records, render, options.results, options.work)


def render_file(raw: Path) -> str:
    """The report of a file of raw numbers."""
    return render(*rawfile.read(raw))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=8, metavar="TOKENS")
    parser.add_argument("--decode", type=int, default=24, metavar="TOKENS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "coterie-bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


if __name__ == "__main__":
    main()
