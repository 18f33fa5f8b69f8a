"""What is known of a finished robust training: report.json, and from it the page and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie import __version__
from coterie.models.vision import VisionSpec, vision_cost
from coterie.training.summary_files import facts_of_run, plain, points, thinned, write_files
from coterie.training.trainer import read_log

if TYPE_CHECKING:
    from coterie.training.adversarial.making import RobustOutcome

CHART = "robust.svg"
TERMS = ("loss", "cross_entropy", "divergence", "drift", "balance", "z", "label_route", "grad_norm")


def write_robust_summary(outcome: RobustOutcome, place: Path) -> None:
    """Write report.json, report.html, the card, its chart and the recipe into ``place``."""
    from coterie.training.adversarial.summary_page import card, chart, report_page

    record = robust_record(outcome)
    write_files(place, record, report_page(record), card(record), {CHART: chart(record)})


def robust_record(outcome: RobustOutcome) -> dict[str, Any]:
    """Everything, as report.json has it."""
    recipe, run, spec = outcome.recipe, outcome.run, outcome.model.spec
    options = recipe.options
    return {
        "coterie": __version__, "name": recipe.name, "recipe": plain(recipe.words), "spec": spec.as_record(),
        "regime": options.regime, "attack": asdict(options.ascent), "judge": asdict(options.judge),
        "steps": run.steps, "epochs": options.epochs, "batch": options.batch, "cost": cost_of(spec),
        "images": {
            "source": Path(outcome.source).name, "learned": outcome.images, "held": outcome.held,
            "classes": list(outcome.classes),
        },
        "first_load": list(run.first_load), "last": None if run.last is None else asdict(run.last),
        "best": None if run.best is None else {"step": run.best.step, **asdict(run.best.judged)},
        "history": history_of(read_log(outcome.work)), "device": "GPU" if torch.cuda.is_available() else "CPU",
        **facts_of_run(outcome.work, "torch", "accelerate"),
    }  # fmt: skip


def cost_of(spec: VisionSpec) -> dict[str, Any]:
    """Multiply-accumulates and parameters, beside those of the dense network of full width."""
    cost = vision_cost(spec)
    return {
        "macs": cost.macs, "router_macs": cost.router, "dense_macs": cost.dense.macs, "parameters": cost.parameters,
        "dense_parameters": cost.dense.parameters,
    }  # fmt: skip


def history_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a log: terms by name as [step, value], shares of routes, flips, and what was judged."""
    steps = thinned([record for record in records if "loss" in record])
    judged = [record for record in records if "validation_accuracy" in record]
    terms = {
        f"{side}{name}": found
        for side in ("", "router_")
        for name in TERMS
        if (found := points(steps, f"{side}{name}"))
    }
    return {
        "terms": terms, "flips": points(steps, "flips"),
        "shares": [[record["step"], *_shares(record["load"])] for record in _loads(records, steps)],
        **{name: points(judged, f"validation_{name}") for name in ("accuracy", "robust_accuracy")},
    }  # fmt: skip


def _loads(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    first = [record for record in records[:1] if "loss" not in record]
    return [record for record in (*first, *steps) if sum(record.get("load", ()))]


def _shares(load: Sequence[int]) -> list[float]:
    return [round(each / sum(load), 4) for each in load]
