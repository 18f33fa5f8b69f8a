"""How long does surgery take and how much memory: ours beside mergekit, and beside scripts that load everything?

    python benchmarks/surgery.py                     dense models and a mixture of more than 2 GB each: half an hour
    python benchmarks/surgery.py --scale small       a minute or two; judges nothing
    python benchmarks/surgery.py --mergekit PYTHON   the interpreter of an environment that has mergekit
    python benchmarks/surgery.py --make-mergekit     make such an environment first (a download of gigabytes)
    python benchmarks/surgery.py --render FILE.jsonl the report again, from the raw numbers of a run

mergekit lives in an environment of its own, never in ours. Without it, it is left out. The report goes to stdout and,
with every raw number beside it, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rawfile
from surgeries import factors
from surgeries.answers import differences
from surgeries.child import OURS, PLAIN, TASKS, linear_plan, upcycle_plan
from surgeries.models import SCALES, Scale, dense_model, mixture, weight_bytes
from surgeries.process import ArmFailed, Spent, same_footing, spent
from surgeries.report import MERGEKIT, render

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# names that two arms may differ in, and by what share of a tensor's largest number: both draw the gates at random;
# mergekit adds bfloat16 numbers up in bfloat16, Coterie in float32
_SKIP, _WITHIN = {"upcycle": "gate.weight"}, {("average", MERGEKIT): 2**-7}
_BY_MERGEKIT = ("upcycle", "average")
_FACTORS = {"small": (64, 128, (4, 16)), "full": (2048, 1024, (64, 128, 256, 512))}


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, report."""
    options = _parser().parse_args(arguments)
    if options.render:
        print(render(*rawfile.read(options.render)))
        return
    mergekit = make_mergekit(options.folder) if options.make_mergekit else options.mergekit
    if mergekit is not None and not mergekit_moe(mergekit).is_file():
        sys.exit(f"There is no mergekit-moe beside {mergekit}. Install mergekit there, or type --make-mergekit.")
    rawfile.show(
        measure(SCALES[options.scale], options.folder, options.results, mergekit, options.repeats, options.tasks)
    )


def measure(
    scale: Scale, folder: Path, results: Path, mergekit: Path | None, repeats: int, tasks: Sequence[str] = TASKS
) -> Path:
    """Run everything; returns the file of raw numbers, with the report beside it as ``.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "scale": scale.name, "mergekit": None if mergekit is None else _version(mergekit),
        "factors": _FACTORS[scale.name][:2],
    }  # fmt: skip
    return rawfile.measured("surgery", config, run(scale, folder, mergekit, repeats, tasks), render, results, folder)


def run(
    scale: Scale, folder: Path, mergekit: Path | None, repeats: int, tasks: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A record per task, then those of factors."""
    for task in tasks:
        rawfile.say(f"{task}: making what it starts from")
        dense = task in _BY_MERGEKIT
        sources = [dense_model(folder, scale, n) for n in (0, 1)] if dense else [mixture(folder, scale)]
        yield {"kind": "task", "task": task, **_contest(task, sources, folder, mergekit if dense else None, repeats)}
    for record in factors.measure(*_FACTORS[scale.name]):
        yield {"kind": "factors", **record}


def _contest(task: str, sources: list[Path], folder: Path, mergekit: Path | None, repeats: int) -> dict[str, Any]:
    names = [OURS, PLAIN, *([MERGEKIT] if mergekit is not None else [])]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    wrong: dict[str, list[str]] = {}
    wrote, kept = 0, folder / f"{task}-of-coterie"
    for turn in range(repeats):
        for name in names:
            out = kept if name == OURS else folder / f"{task}-of-another"
            shutil.rmtree(out, ignore_errors=True)
            rawfile.say(f"{task}: {name}, {turn + 1} of {repeats}")
            runs[name].append(asdict(_once(task, name, out, sources, mergekit)))
            if name == OURS:
                wrote = weight_bytes(out)
            elif turn == 0:
                wrong[name] = differences(kept, out, _SKIP.get(task, ""), _WITHIN.get((task, name), 0.0))
            if name != OURS:
                shutil.rmtree(out)
    shutil.rmtree(kept)
    left_out = (
        {} if mergekit is not None or task not in _BY_MERGEKIT else {MERGEKIT: "it was not given, see --mergekit"}
    )
    return {
        "arms": runs, "wrong": {name: each for name, each in wrong.items() if each}, "left out": left_out,
        "bytes read": sum(map(weight_bytes, sources)), "bytes written": wrote,
    }  # fmt: skip


def _once(task: str, name: str, out: Path, sources: list[Path], mergekit: Path | None) -> Spent:
    log = out.with_suffix(".log")
    same_footing(sources)
    if name == MERGEKIT and mergekit is not None:
        make, command = (upcycle_plan, "mergekit-moe") if task == "upcycle" else (linear_plan, "mergekit-yaml")
        program, plan = mergekit.absolute().with_name(command), make(sources, out.with_suffix(".yaml"))
        # in one process, offline, as a user would type it
        return spent([str(program), str(plan), str(out)], log, out.parent, {"HF_HUB_OFFLINE": "1"})
    command = [sys.executable, "-m", "surgeries.child", task, name, str(out), *map(str, sources)]
    return spent(command, log, HERE, {"HF_HUB_OFFLINE": "1"})


def mergekit_moe(python: Path) -> Path:
    """The command beside an interpreter."""
    return python.absolute().with_name("mergekit-moe")


def make_mergekit(folder: Path) -> Path:
    """An environment with mergekit in ``folder``, made if it is not there; its interpreter."""
    python = folder.absolute() / "mergekit-env" / "bin" / "python"
    if not mergekit_moe(python).is_file():
        rawfile.say("Making an environment for mergekit: some minutes")
        venv.create(python.parent.parent, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "mergekit"], check=True)
    return python


def _version(python: Path) -> str:
    code = "from importlib.metadata import version as v; print(v('mergekit'), 'with torch', v('torch'))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache" / "coterie-surgery", help="20 GB for full"
    )
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON")
    parser.add_argument("--make-mergekit", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", type=Path, metavar="FILE", help="raw numbers of an earlier run; runs nothing")
    return parser


if __name__ == "__main__":
    try:
        main()
    except ArmFailed as failed:
        sys.exit(f"An arm failed. The end of what it said:\n{failed}")
