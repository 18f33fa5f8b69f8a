"""Every arm, every kind of routes, every repeat: interleaved, from cold files, each in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from offloading.accelerated import offloaded_files
from offloading.answers import digest, error
from offloading.arms import ARMS
from offloading.checkpoint import shard_files
from offloading.cold import make_cold
from offloading.counters import FOREIGN_LIMIT
from offloading.memory_limit import MemoryGroup, memory_group
from offloading.worker import Spec

_BENCHMARKS = Path(__file__).resolve().parents[1]
# enters the memory group before Python starts, so that every page of it is charged there
_ENTER = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True)
class Plan:
    """What is to be run. ``limit`` is 0 where there is no memory group; ``spec`` is the pattern of every run."""

    spec: Spec
    arms: tuple[str, ...]
    routes: tuple[str, ...]
    repeats: int
    limit: int
    work: Path

    def runs(self) -> Iterator[tuple[int, str, str]]:
        """(repeat, routes, arm): the order of the arms turns with the repeat, so that none is always first."""
        for repeat in range(self.repeats):
            for number, routes in enumerate(self.routes):
                turn = (repeat + number) % len(self.arms)
                for arm in self.arms[turn:] + self.arms[:turn]:
                    if repeat < (ARMS[arm].repeats or self.repeats):
                        yield repeat, routes, arm


def run_all(plan: Plan, raw: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run the plan; every finished run is appended to ``raw`` at once, so that an interruption loses none."""
    records: list[dict[str, Any]] = []
    todo = list(plan.runs())
    began = time.monotonic()
    with raw.open("a") as file, contextlib.suppress(KeyboardInterrupt):
        for number, (repeat, routes, arm) in enumerate(todo, 1):
            record = _undisturbed(plan, arm, routes, repeat)
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            left = (time.monotonic() - began) / number * (len(todo) - number)
            say(f"[{number}/{len(todo)}] repeat {repeat + 1}, {routes:8s} {arm:14s} {_brief(record)}; {_minutes(left)}")
    return records


def _undisturbed(plan: Plan, arm: str, routes: str, repeat: int) -> dict[str, Any]:
    """One run, and once more if others used the machine meanwhile (the rule is fixed beforehand)."""
    for attempt in range(2):
        record = run_once(plan, arm, routes, repeat) | {"attempt": attempt}
        if record["status"] != "ok" or record["foreign_share"] <= FOREIGN_LIMIT:
            break
    return record


def run_once(plan: Plan, arm: str, routes: str, repeat: int) -> dict[str, Any]:
    """Make the files cold, start the worker, and gather what it and the kernel say."""
    logits = plan.work / "logits" / f"{routes}-{arm}-{repeat}.npy"
    logits.parent.mkdir(exist_ok=True)
    limited = plan.limit > 0 and ARMS[arm].limited
    spec = replace(plan.spec, arm=arm, routes=routes, logits=str(logits))
    if not ARMS[arm].limited:
        spec = replace(spec, memory=0, slots=0)
    make_cold([*shard_files(Path(spec.checkpoint)), *offloaded_files(Path(spec.offload_folder))])
    head = {"arm": arm, "routes": routes, "repeat": repeat, "time": time.time(), "load_average": os.getloadavg()[0]}
    with memory_group(plan.limit) if limited else contextlib.nullcontext() as group:
        reason, result = start_worker("offloading.worker", asdict(spec), plan.work, group)
        usage = group.usage() if group else {}
    if reason:
        return head | {"status": "failed", "reason": reason, "group": usage}
    reference = plan.work / "logits" / f"{routes}-reference.npy"
    if not reference.exists():
        logits.rename(reference)
        logits = reference
    answer = {"digest": digest(logits), "error": error(logits, reference)}
    return head | {"status": "ok", "group": usage} | answer | result


def start_worker(
    module: str, spec: dict[str, Any], work: Path, group: MemoryGroup | None
) -> tuple[str, dict[str, Any]]:
    """(why it failed or "", its result). Inside ``group`` from its first page on."""
    spec_path, result_path = work / "spec.json", work / "result.json"
    spec_path.write_text(json.dumps(spec))
    result_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, str(spec_path), str(result_path)]
    if group is not None:
        command = ["sh", "-c", _ENTER, str(group.procs), *command]
    paths = os.pathsep.join([str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0 and result_path.exists():
        return "", json.loads(result_path.read_text())
    killed = "killed by the memory limit; " if group and group.usage()["kills"] else ""
    return f"{killed}exit status {done.returncode}: {done.stderr.strip()[-600:]}", {}


def _brief(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return f"FAILED: {record['reason'].splitlines()[-1] if record['reason'] else ''}"
    seconds = sorted(step["seconds"] for step in record["steps"][1:])
    noise = f", others used {record['foreign_share']:.0%}" if record["foreign_share"] > FOREIGN_LIMIT else ""
    return f"{1000 * seconds[len(seconds) // 2]:6.0f} ms/token{noise}"


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left"
