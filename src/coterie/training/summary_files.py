"""What the reports of every training have in common: curves of a log, facts of the run, files beside weights."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coterie.training.trainer import seconds_spent

REPORT, PAGE, CARD, WORDS = "report.json", "report.html", "README.md", "recipe.yaml"
_POINTS = 300  # of a curve over training, at most

Records = Sequence[Mapping[str, Any]]


def facts_of_run(work: Path, *libraries: str) -> dict[str, Any]:
    """How long, on what, when, with which versions of ``libraries``."""
    return {
        "seconds": round(seconds_spent(work), 1), "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }  # fmt: skip


def thinned(records: Records) -> Records:
    """Some hundred of them, evenly, the last included."""
    every = max(1, len(records) // _POINTS)
    return records[every - 1 :: every]


def points(records: Records, name: str) -> list[list[float]]:
    """[step, value] of those that have ``name``."""
    return [[record["step"], short(record[name])] for record in records if name in record]


def short(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=str))


def write_files(place: Path, record: Mapping[str, Any], page: str, card: str, charts: Mapping[str, str]) -> None:
    """Write report.json, report.html, the card, its charts by file name, and the recipe that ``record`` has."""
    import yaml  # type: ignore[import-untyped]

    texts = {
        REPORT: json.dumps(record, ensure_ascii=False, indent=1) + "\n", PAGE: page, CARD: card, **charts,
        WORDS: yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True),
    }  # fmt: skip
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")
