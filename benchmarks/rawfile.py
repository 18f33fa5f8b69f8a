"""The files of raw numbers that reports are made of: a line with the configuration, then a line per record."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def fresh(results: Path, stem: str) -> Path:
    """A file name that is not taken: an earlier run of the day is kept. Makes the folder."""
    results.mkdir(parents=True, exist_ok=True)
    names = (results / f"{stem}{tail}.jsonl" for tail in ("", *(f"_{n}" for n in range(2, 1000))))
    return next(path for path in names if not path.exists())


def write(
    raw: Path, config: dict[str, Any], records: Iterable[dict[str, Any]], render: Callable[..., str]
) -> Path:  # fmt: skip
    """Write the records as they come, then the report of them beside the file as ``.md``; returns ``raw``."""
    with raw.open("w") as file:
        file.write(json.dumps({"config": config}) + "\n")
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()
    raw.with_suffix(".md").write_text(render(*read(raw)))
    return raw


def read(raw: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and records, of a run that is complete or not."""
    config, *records = (json.loads(line) for line in raw.read_text().splitlines())
    return config["config"], records


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
