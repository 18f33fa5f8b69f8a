"""What is known of a finished robust training: report.json, and from it the page and the card."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie import __version__
from coterie.models.vision import VisionSpec, vision_cost
from coterie.training.trainer import read_log, seconds_spent

if TYPE_CHECKING:
    from coterie.training.adversarial.making import RobustOutcome

REPORT, PAGE, CARD, CHART, WORDS = "report.json", "report.html", "README.md", "robust.svg", "recipe.yaml"
_POINTS = 300  # of a curve over training, at most
TERMS = ("loss", "cross_entropy", "divergence", "drift", "balance", "z", "label_route", "grad_norm")


def write_robust_summary(outcome: RobustOutcome, place: Path) -> None:
    """Write report.json, report.html, the card, its chart and the recipe into ``place``."""
    import yaml  # type: ignore[import-untyped]

    from coterie.training.adversarial.summary_page import card, chart, report_page

    record = robust_record(outcome)
    texts = {
        REPORT: json.dumps(record, ensure_ascii=False, indent=1) + "\n", PAGE: report_page(record),
        CARD: card(record), CHART: chart(record),
        WORDS: yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True),
    }  # fmt: skip
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")


def robust_record(outcome: RobustOutcome) -> dict[str, Any]:
    """Everything, as report.json has it."""
    recipe, run, spec = outcome.recipe, outcome.run, outcome.model.spec
    options = recipe.options
    return {
        "coterie": __version__, "name": recipe.name, "recipe": _plain(recipe.words), "spec": spec.as_record(),
        "regime": options.regime, "attack": asdict(options.ascent), "judge": asdict(options.judge),
        "steps": run.steps, "epochs": options.epochs, "batch": options.batch, "cost": cost_of(spec),
        "images": {
            "source": Path(outcome.source).name, "learned": outcome.images, "held": outcome.held,
            "classes": list(outcome.classes),
        },
        "first_load": list(run.first_load), "last": None if run.last is None else asdict(run.last),
        "best": None if run.best is None else {"step": run.best.step, **asdict(run.best.judged)},
        "history": history_of(read_log(outcome.work)), "seconds": round(seconds_spent(outcome.work), 1),
        "threads": torch.get_num_threads(), "device": "GPU" if torch.cuda.is_available() else "CPU",
        "finished": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "accelerate")},
    }  # fmt: skip


def cost_of(spec: VisionSpec) -> dict[str, Any]:
    """Multiply-accumulates and parameters, beside those of the dense network of full width."""
    dense_spec = {**spec.as_record(), "experts": 0, "ratio": 1.0}
    cost, dense = vision_cost(spec), vision_cost(VisionSpec.from_record(dense_spec))
    return {
        "macs": cost.pathway + cost.router, "router_macs": cost.router, "dense_macs": dense.pathway,
        "parameters": cost.parameters, "dense_parameters": dense.parameters,
    }  # fmt: skip


def history_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a log: terms by name as [step, value], shares of routes, flips, and what was judged."""
    steps = _thinned([record for record in records if "loss" in record])
    judged = [record for record in records if "validation_accuracy" in record]
    terms = {
        f"{side}{name}": points
        for side in ("", "router_")
        for name in TERMS
        if (points := _points(steps, f"{side}{name}"))
    }
    return {
        "terms": terms, "flips": _points(steps, "flips"),
        "shares": [[record["step"], *_shares(record["load"])] for record in _loads(records, steps)],
        **{name: _points(judged, f"validation_{name}") for name in ("accuracy", "robust_accuracy")},
    }  # fmt: skip


def _loads(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    first = [record for record in records[:1] if "loss" not in record]
    return [record for record in (*first, *steps) if sum(record.get("load", ()))]


def _shares(load: Sequence[int]) -> list[float]:
    return [round(each / sum(load), 4) for each in load]


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    return [[record["step"], float(f"{record[name]:.5g}")] for record in records if name in record]


def _thinned(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    every = max(1, len(records) // _POINTS)
    return records[every - 1 :: every]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
