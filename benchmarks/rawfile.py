"""The files of raw numbers that reports are made of: a line with the configuration, then a line per record."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from offloading.facts import all_facts, hardware_name


def measured(
    theme: str, config: dict[str, Any], records: Iterable[dict[str, Any]], render: Callable[..., str], results: Path,
    folder: Path | None = None,
) -> Path:  # fmt: skip
    """Run ``records``, each written as it comes; the file of raw numbers, with the report beside it as ``.md``.

    ``folder`` is where the work is done, for the facts of its disk; None: it is ``results``.
    """
    results.mkdir(parents=True, exist_ok=True)
    facts = all_facts(folder or results)
    raw = fresh(results, f"{theme}_{hardware_name(facts['hardware'])}_{date.today().isoformat()}")
    return write(raw, {"facts": facts, "threads": torch.get_num_threads(), **config, "raw": raw.name}, records, render)


def show(raw: Path) -> None:
    """Print the report, and where it is."""
    print(raw.with_suffix(".md").read_text())
    say(f"Written: {raw.with_suffix('.md')} and {raw.name}")


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
