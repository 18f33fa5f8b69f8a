"""The report of a study as JSON: what was run, where, on what text, what came out, what that says."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coterie import __version__
from coterie.errors import OptionError
from coterie.studies.claims import Arms, Finding, judge
from coterie.studies.corpus import Corpus
from coterie.studies.study import Study

FORMAT = 1
_LIBRARIES = ("torch", "transformers", "accelerate", "numpy")


def record_of(
    study: Study, corpus: Corpus, entries: Sequence[Mapping[str, Any]], *, seeds: Sequence[int], jobs: int,
    scale: float, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The report of finished runs.

    Args:
        study: what was run.
        corpus: on which text.
        entries: arm, seed, seconds and metrics (or error) of every run.
        seeds, jobs, scale: how.
        seconds: since the start; what an earlier start did is not in it.
    """
    findings = [judge(claim, runs_by_seed(entries, seeds), shortened=scale < 1) for claim in study.claims]
    return plain(
        {
            "coterie": "study",
            "format": FORMAT,
            "study": study.name,
            "paper": study.paper,
            "question": study.question,
            "setting": study.setting,
            "quick": scale < 1,
            "scale": scale,
            "seeds": list(seeds),
            "jobs": jobs,
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": round(seconds, 1),
            "run_seconds": sum(entry["seconds"] for entry in entries),
            "text": corpus.about(),
            "machine": machine(),
            "versions": versions(),
            "arms": [
                {"arm": arm.name, "what": arm.what, "steps": arm.steps, "options": arm.options, "shown": arm.shown}
                for arm in study.arms
            ],
            "columns": [{"metric": one.metric, "head": one.head, "form": one.form} for one in study.columns],
            "claims": [_claim(finding) for finding in findings],
            "runs": list(entries),
        }
    )


def read_record(path: Path) -> dict[str, Any]:
    """What `coterie.studies.run_study` wrote.

    Raises:
        OptionError: no such file, or not such a report.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as a study's report: {error}.") from error
    if not isinstance(record, dict) or record.get("coterie") != "study" or record.get("format") != FORMAT:
        raise OptionError(f"{path} is no study's report of format {FORMAT}. Make one: coterie reproduce PAPER")
    return record


def runs_by_seed(entries: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[int, Arms]:
    """Seed -> arm -> metrics of the runs that did not fail."""
    return {
        seed: {entry["arm"]: entry["metrics"] for entry in entries if entry["seed"] == seed and "metrics" in entry}
        for seed in seeds
    }


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {"coterie": __version__, "python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def machine() -> dict[str, Any]:
    """Of what decides the time, and the last bits."""
    from coterie.store.processor import processor

    found = processor()
    return {"processor": found.name, "cores": found.usable, "system": platform.system(), "threads_per_run": 1}


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers that are none become null, tuples lists, keys words."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _claim(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    return {
        "key": claim.key, "text": claim.text, "gated": claim.gated, "verdict": finding.verdict, "why": finding.why,
        "numbers": {str(seed): dict(numbers) for seed, numbers in finding.numbers.items()},
    }  # fmt: skip
