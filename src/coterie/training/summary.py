"""What is known of a finished training: report.json, and from it the page and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie import __version__
from coterie.models.find import find_sites
from coterie.models.routed import config_of
from coterie.training.curve import Worth
from coterie.training.recipe import Recipe
from coterie.training.summary_files import facts_of_run, plain, points, short, thinned, write_files
from coterie.training.trainer import read_log

CHART = "loss.svg"
_LOSSES = ("loss", "cross_entropy", "balance", "entropy", "z", "consistency")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training ended with.

    Attributes:
        recipe, model: what was done, and what came of it.
        before, after: what the model was worth on text it did not learn from.
        curves: option -> (value, what the model is worth there).
        reading: counts of tokens and bytes.
        work: where the log is, while it is.
        original: what a checkpoint was worth with the router it came with.
    """

    recipe: Recipe
    model: Any
    before: Worth
    after: Worth
    curves: Mapping[str, Sequence[tuple[float, Worth]]]
    reading: Mapping[str, int]
    work: Path
    original: Worth | None = None

    def record(self) -> dict[str, Any]:
        """Everything, as report.json has it."""
        options, config = self.recipe.options, self.model.config
        tokens = options.steps * options.batch * options.accumulate * self.recipe.data.length
        stages = {"original": self.original, "before": self.before, "after": self.after}
        curves = {name: [{"value": at, **asdict(each)} for at, each in c] for name, c in self.curves.items()}
        return {
            "coterie": __version__, "name": self.recipe.name, "recipe": plain(self.recipe.words),
            "family": getattr(config, "base_model_type", config.model_type),
            "router": plain(config_of(self.model)["router"]), "options": plain(asdict(options)),
            "reading": dict(self.reading), "tokens_seen": tokens,
            "parameters": parameters_of(self.model, self.after.mean_experts),
            **{name: None if each is None else asdict(each) for name, each in stages.items()}, "curves": curves,
            "history": history_of(self.work), **facts_of_run(self.work, "torch", "transformers"),
        }  # fmt: skip


def parameters_of(model: Any, mean_experts: float) -> dict[str, int]:
    """All parameters, those of experts, and how many work on a token when it has ``mean_experts`` in each layer."""
    sites, experts, active = find_sites(model), 0, 0.0
    for site in sites:
        size = sum(parameter.numel() for parameter in site.experts.parameters())
        experts += size
        active += size * mean_experts / site.num_true
    total = model.num_parameters()
    return {"all": total, "experts": experts, "active": round(total - experts + active)}


def history_of(work: Path) -> dict[str, Any]:
    """Of the log: losses by name as [step, value], experts per token by layer, scheduled values, and the last load."""
    records = [record for record in read_log(work) if "loss" in record]
    kept = thinned(records)
    scheduled = sorted({name for record in kept for name in ("k", "p", "mean_experts") if name in record})
    return {
        **{name: points(kept, name) for name in (*_LOSSES, *scheduled) if any(name in record for record in kept)},
        "experts": [[record["step"], *map(short, record["experts"])] for record in kept if "experts" in record],
        "load": _late_load(records),
    }  # fmt: skip


def _late_load(records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """[L, E] assignments of each expert in the last tenth of the run."""
    late = [record["load"] for record in records[-max(1, len(records) // 10) :] if "load" in record]
    return [[sum(each) for each in zip(*layer, strict=True)] for layer in zip(*late, strict=True)]


def write_summary(outcome: Outcome, place: Path) -> None:
    """Write report.json, report.html, the card, its chart and the recipe into ``place``."""
    from coterie.training.summary_card import card, chart
    from coterie.training.summary_page import report_page

    record = outcome.record()
    write_files(place, record, report_page(record), card(record), {CHART: chart(record)})
