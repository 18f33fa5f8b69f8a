"""The whole benchmark as functions: prepare the disk, share out the memory, run, write the report."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import rawfile

from coterie.units import format_bytes
from offloading.accelerated import make_offload_folder
from offloading.bounds import belady_bytes
from offloading.checkpoint import make_checkpoint, needed_bytes
from offloading.counters import check_device_counter
from offloading.facts import all_facts, hardware_name
from offloading.memory_limit import memory_group
from offloading.report import render
from offloading.routes import STICKY_RANGE, make_routes
from offloading.scales import SCALES, Scale
from offloading.schedule import Plan, run_all, start_worker
from offloading.summary import Belady
from offloading.worker import Spec

# for what is neither the interpreter and its libraries nor in Coterie's budget: page tables, thread stacks,
# allocator slack. Fixed before the first full run.
MARGIN = 128 * 1024**2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """What the user asked for. ``limit`` is 0 where no memory group is wanted."""

    scale: Scale
    limit: int
    arms: tuple[str, ...]
    routes: tuple[str, ...]
    repeats: int
    prompt: int
    decode: int
    seed: int
    work: Path


def prepare(choice: Choice, say: Say) -> Spec:
    """Make what has to be on disk, once per folder.

    Raises:
        RuntimeError: the disk is too small.
    """
    scale, work = choice.scale, choice.work
    work.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(work).free, needed_bytes(scale)
    if free < needed and not (work / f"olmoe-{scale.name}").exists():
        raise RuntimeError(
            f"{work} has {format_bytes(free)} free and {format_bytes(needed)} are needed. Choose another --work."
        )
    say(f"Making the model in {work} ({format_bytes(scale.dense_bytes + scale.experts_bytes)}), unless it is there")
    checkpoint = make_checkpoint(work, scale)
    folder = make_offload_folder(checkpoint, scale) if "accelerate" in choice.arms else work / "none"
    return Spec(
        arm="", routes="", scale=scale.name, checkpoint=str(checkpoint), offload_folder=str(folder), logits="",
        memory=0, slots=0, prompt=choice.prompt, decode=choice.decode, seed=choice.seed,
    )  # fmt: skip


def run(choice: Choice, results: Path, say: Say) -> Path:
    """Run everything; returns the file of raw numbers, with the report beside it as ``.md``.

    The file has the configuration in its first line and a run in every other, written as they end.

    Raises:
        RuntimeError: no memory group can be made, files do not get cold, device bytes are not counted here, or
            another run uses the folder.
    """
    choice.work.mkdir(parents=True, exist_ok=True)
    with alone(choice.work):
        return _run(choice, results, say)


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Two runs in one folder would overwrite each other's files, and measure each other."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"Another benchmark is running in {work}. Wait for its end.") from error
        yield


def _run(choice: Choice, results: Path, say: Say) -> Path:
    spec = prepare(choice, say)
    shutil.rmtree(choice.work / "logits", ignore_errors=True)
    counter = check_device_counter(choice.work)
    spec, reason = _with_budget(spec, choice)
    config = _config(choice, spec) | {"counter": counter, "memory_reason": reason}
    raw = _fresh(results, choice, config["facts"])
    config["raw"] = raw.name
    raw.write_text(json.dumps({"config": config}) + "\n")
    plan = Plan(spec, choice.arms, choice.routes, choice.repeats, choice.limit, choice.work)
    records = run_all(plan, raw, say)
    raw.with_suffix(".md").write_text(render(config, records, _belady(config)))
    return raw


def render_file(raw: Path) -> str:
    """The report of a file of raw numbers, complete or not."""
    config, records = rawfile.read(raw)
    return render(config, records, _belady(config))


def _with_budget(spec: Spec, choice: Choice) -> tuple[Spec, str]:
    """The spec with Coterie's own budget: the limit, less what the libraries hold, less the margin; and why."""
    scale = choice.scale
    if not choice.limit:
        slots = max(1, int(scale.slots_share * scale.layers * scale.experts))
        return replace(spec, slots=slots), f"{slots} expert slots"
    with memory_group(choice.limit) as group:
        reason, found = start_worker("offloading.baseline", {}, choice.work, group)
    if reason:
        raise RuntimeError(f"The libraries could not be loaded in the memory group: {reason}")
    held = found["baseline_bytes"]
    memory = choice.limit - held - MARGIN
    text = f"the limit less {format_bytes(held)} of interpreter and libraries, less a margin of {format_bytes(MARGIN)}"
    return replace(spec, memory=memory), f"{format_bytes(memory)}, which is {text}"


def _config(choice: Choice, spec: Spec) -> dict[str, Any]:
    scale, positions = choice.scale, choice.prompt + choice.decode
    shares = {kind: make_routes(kind, scale, positions, choice.seed).kept_share() for kind in choice.routes}
    return {
        "date": date.today().isoformat(), "facts": all_facts(choice.work), "scale": scale.name, "limit": choice.limit,
        "memory": spec.memory, "prompt": choice.prompt, "decode": choice.decode, "seed": choice.seed,
        "repeats": choice.repeats, "kept_shares": shares, "unjudged": _unjudged(choice, shares),
    }  # fmt: skip


def _unjudged(choice: Choice, shares: dict[str, float]) -> str:
    """Why the required lines do not apply to this run, or nothing."""
    if choice.scale.name != "full" or choice.limit != choice.scale.limit:
        return "only the full scale at its own limit is"
    low, high = STICKY_RANGE
    if not low <= shares.get("sticky", low) <= high:
        return f"sticky routes keep {shares['sticky']:.0%}, not {low:.0%} to {high:.0%}; give more tokens"
    return ""


def _fresh(results: Path, choice: Choice, facts: dict[str, Any]) -> Path:
    """A file name that is not taken: an earlier run of the day is kept."""
    theme = "offload" if choice.scale.name == "full" else f"offload-{choice.scale.name}"
    return rawfile.fresh(results, f"{theme}_{hardware_name(facts['hardware'])}_{date.today().isoformat()}")


def _belady(config: dict[str, Any]) -> Belady:
    scale, prompt = SCALES[config["scale"]], config["prompt"]

    def per_token(routes: str, slots: int) -> float:
        table = make_routes(routes, scale, prompt + config["decode"], config["seed"])
        return belady_bytes(table, scale, prompt, slots)

    return per_token
