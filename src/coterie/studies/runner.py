"""A whole study: every arm with every seed, in several processes, kept as it goes, judged at the end."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.errors import MissingExtraError, OptionError
from coterie.jobs.output import check_output, write_output
from coterie.studies.corpus import Corpus
from coterie.studies.record import machine, plain, record_of, versions
from coterie.studies.study import Arm, Bench, Study, check_seeds
from coterie.studies.workers import Word, Workers

QUICK = 0.05  # the share of the steps that a shortened run makes


@dataclass(frozen=True)
class State:
    """How far a study is, for whoever watches.

    Attributes:
        steps, of: updates done and in all, over all runs; those of an earlier start count.
        before: steps that an earlier start had done.
        finished, runs: runs.
        seconds: since this start.
        running: names of the runs that are at work.
    """

    steps: int
    of: int
    before: int
    finished: int
    runs: int
    seconds: float
    running: tuple[str, ...]

    @property
    def seconds_left(self) -> float | None:
        """An estimate from this start's own speed; None before there is one."""
        done = self.steps - self.before
        return None if done <= 0 else self.seconds / done * (self.of - self.steps)


Watch = Callable[[State], None]


def work_of(out: Path) -> Path:
    """Where a study keeps what is finished until all is: beside its report."""
    return out.with_name(out.name + ".work")


def run_study(
    study: Study,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    jobs: int = 2,
    text: Path | None = None,
    scale: float = 1.0,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run ``study``, write its report to ``out`` and return it. Blocks; uses ``jobs`` processes of one thread.

    Each finished run is kept in ``work_of(out)``; a start with the same study, seeds, text and versions goes on from
    there, and the directory is removed when the report is written.

    Args:
        study: what to run.
        out: a JSON file that does not exist.
        seeds: instead of the study's own.
        jobs: runs at a time.
        text: where the text is; None is what every machine has.
        scale: the share of the full length. Below 1 every verdict is "not shown".
        watch: called a few times a second.

    Raises:
        OptionError: seeds, jobs, text or ``out`` cannot be used; ``out`` exists.
        MissingExtraError: accelerate is not installed.
        TrainingError: a process died. Runs whose training fails are written down as failed instead.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", extra="train")
    start = time.monotonic()
    chosen = check_seeds(tuple(study.seeds if seeds is None else seeds))
    if jobs < 1 or not 0 < scale <= 1:
        raise OptionError(f"jobs must be at least 1 and scale in (0, 1], not {jobs} and {scale}.")
    if check_output(out).exists():
        raise OptionError(f"{out} exists. Name another file with --out, or remove it.")
    campaign = _Campaign(study, chosen, study.gather(text), scale, work_of(out))
    campaign.work_through(jobs, watch)
    record = record_of(
        study, campaign.corpus, campaign.entries(), seeds=chosen, jobs=jobs, scale=scale,
        seconds=time.monotonic() - start,
    )  # fmt: skip
    write_output(out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(campaign.work, ignore_errors=True)
    return record


@dataclass
class _Run:
    arm: Arm
    seed: int
    entry: dict[str, Any] | None = None  # what is kept of it once it is over
    steps: int = 0
    began: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.arm.name} seed {self.seed}"


@dataclass
class _Campaign:
    study: Study
    seeds: tuple[int, ...]
    corpus: Corpus
    scale: float
    work: Path
    runs: dict[str, _Run] = field(default_factory=dict)
    before: int = 0

    def __post_init__(self) -> None:
        self._prepare()
        for run in (_Run(arm, seed) for arm in self.study.arms for seed in self.seeds):
            self.runs[run.key] = run
            run.entry = self._kept(run)
            run.steps = self._length(run) if run.entry else 0
        self.before = sum(run.steps for run in self.runs.values())

    def entries(self) -> list[dict[str, Any]]:
        """Every run as it is kept, in order."""
        return [run.entry for run in self.runs.values() if run.entry is not None]

    def work_through(self, jobs: int, watch: Watch | None) -> None:
        """Do all runs that are not finished, each after those it needs."""
        start = time.monotonic()
        with Workers(self.study.run, jobs) as workers:
            while any(run.entry is None for run in self.runs.values()):
                while workers.has_room and (ready := self._ready()) is not None:
                    self._begin(workers, ready)
                for key, word in workers.words():
                    self._hear(self.runs[key], word)
                if watch is not None:
                    watch(self._state(time.monotonic() - start))

    def _begin(self, workers: Workers, run: _Run) -> None:
        run.began = time.monotonic()
        place = self._place(run.arm.name, run.seed)
        shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted
        place.mkdir(parents=True)
        earlier = {name: self._place(name, run.seed) for name in run.arm.after}
        workers.begin(run.key, Bench(run.arm, run.seed, place, self.work / "text", earlier, self.scale))

    def _hear(self, run: _Run, word: Word) -> None:
        if word.kind == "step":
            run.steps = min(int(word.value), self._length(run))
            return
        if word.kind == "broken":
            raise RuntimeError(f"The run {run.key} broke:\n{word.value}")
        seconds = round(time.monotonic() - run.began, 1)
        self._finish(run, seconds, **{"metrics" if word.kind == "done" else "error": word.value})

    def _finish(self, run: _Run, seconds: float, **result: Any) -> None:
        run.entry = plain({"arm": run.arm.name, "seed": run.seed, "seconds": seconds, **result})
        run.steps = self._length(run)
        write_output(self._file(run), json.dumps(run.entry))

    def _ready(self) -> _Run | None:
        """The first run that has not begun and whose earlier runs are over; one that cannot begin any more is over."""
        for run in self.runs.values():
            if run.entry is None and not run.began:
                needed = [self.runs[f"{name} seed {run.seed}"] for name in run.arm.after]
                failed = [one for one in needed if one.entry and "error" in one.entry]
                if failed:
                    self._finish(run, 0.0, error=f"{failed[0].key} failed, which this starts from.")
                elif all(one.entry for one in needed):
                    return run
        return None

    def _state(self, seconds: float) -> State:
        runs = self.runs.values()
        at_work = tuple(run.key for run in runs if run.began and run.entry is None)
        finished = sum(run.entry is not None for run in runs)
        of = sum(map(self._length, runs))
        return State(sum(run.steps for run in runs), of, self.before, finished, len(runs), seconds, at_work)

    # ---- the work directory

    def _prepare(self) -> None:
        """Make the work directory, or take up the one of an earlier start."""
        about, wanted = self.work / "study.json", plain(self._fingerprint())
        if self.work.exists() and any(self.work.iterdir()):
            found = None
            with suppress(OSError, ValueError):
                found = json.loads(about.read_text(encoding="utf-8"))
            if found != wanted:
                raise OptionError(
                    f"{self.work} is in the way: it is not from a start of this study with this text, length and "
                    "these versions. Remove it, or name another --out."
                )
        self.work.mkdir(exist_ok=True)
        write_output(about, json.dumps(wanted))
        self.corpus.save(self.work / "text")

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for finished runs to count."""
        arms = [[arm.name, arm.steps, dict(arm.options), arm.after] for arm in self.study.arms]
        about = {"study": self.study.name, "arms": arms, "scale": self.scale, "text": self.corpus.digest}
        return about | {"versions": versions(), "machine": machine()}

    def _kept(self, run: _Run) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            entry: dict[str, Any] = json.loads(self._file(run).read_text(encoding="utf-8"))
            return None if "error" in entry else entry
        return None

    def _file(self, run: _Run) -> Path:
        return self._place(run.arm.name, run.seed).with_suffix(".json")

    def _place(self, arm: str, seed: int) -> Path:
        number = [one.name for one in self.study.arms].index(arm)
        return self.work / f"{number:02}-seed{seed}"

    def _length(self, run: _Run) -> int:
        return Bench(run.arm, run.seed, self.work, self.work, scale=self.scale).steps
