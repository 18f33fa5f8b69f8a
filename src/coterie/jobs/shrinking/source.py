"""What storing experts in another form starts from: the checkpoint, what is known of it, its layers, merged or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.locate import locate
from coterie.jobs.shrinking.calibrated import calibrated, chosen_sites
from coterie.jobs.shrinking.merge import MergeEdit, plan
from coterie.jobs.tracing.reading import open_texts
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.prompts import Prompts
from coterie.models.statistics import Statistics
from coterie.surgery.layer import LayerExperts, read_layer
from coterie.surgery.merge_plan import MergeOptions
from coterie.surgery.moments import InputMoments
from coterie.surgery.writer import refuse_existing

__all__ = ["Shrinking", "Texts", "shrinking"]

Texts = Sequence[str | Path] | Mapping[str, str]
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Shrinking:
    """A checkpoint whose experts are to be stored in another form.

    Attributes:
        checkpoint: opened.
        statistics: of it; None where nothing is known.
        chosen: the layers that are to change, in order.
        merging: what merges a layer first; None where nothing is merged.
    """

    checkpoint: Checkpoint
    statistics: Statistics | None
    chosen: tuple[ExpertSite, ...]
    merging: MergeEdit | None = field(default=None, repr=False)

    def read(self, site: ExpertSite) -> LayerExperts:
        """A layer as it is to be stored anew. Blocks."""
        return self.prepared(read_layer(self.checkpoint, site))

    def prepared(self, layer: LayerExperts) -> LayerExperts:
        """``layer``, merged where that was asked for."""
        if self.merging is None:
            return layer
        new = self.merging(layer)
        site = replace(layer.site, num_experts=new.num_experts, routes=layer.num_routes)
        return replace(layer, site=site, weights=new.weights, router=new.router, experts_of=new.experts_of)

    def changes(self, layer: LayerExperts) -> bool:
        """Whether this layer is to change."""
        return layer.site.name in {site.name for site in self.chosen}

    def moments(self, layer: LayerExperts) -> InputMoments:
        """By which errors in ``layer`` are weighed."""
        known = self.statistics is not None and layer.site.name in self.statistics.sites
        return InputMoments(layer, self.statistics[layer.site.name].inputs if known and self.statistics else None)

    def shares(self, layer: LayerExperts) -> Tensor:
        """[E] share of the layer's assignments that each expert has; alike where nothing is known. No expert has 0."""
        usage = torch.zeros(layer.num_experts, dtype=torch.float64)
        if self.statistics is not None and layer.site.name in self.statistics.sites:
            seen = self.statistics[layer.site.name].usage.double()
            leads = layer.experts_of or range(layer.num_experts)
            if len(seen) == len(leads):
                usage.index_add_(0, torch.tensor(list(leads)), seen)
            elif len(seen) == layer.num_experts:
                usage += seen
        return (usage + 1) / (usage + 1).sum()

    def facts(self) -> dict[str, Any]:
        """What a model's card says of the calibration."""
        if self.statistics is None:
            return {}
        texts = self.statistics.about.get("texts", [])
        said = ", ".join(f"{text['name']} ({text['tokens']} tokens)" for text in texts)
        return {"tokens": self.statistics.tokens, "texts": said, "statistics of": self.statistics.model[:12]}


def shrinking(
    model: str | Path | Checkpoint, out: str | Path, *, statistics: str | Path | Statistics | None = None,
    texts: Texts = (), memory: str | int | None = None, skip_layers: Sequence[int] = (), merge_first: int | None = None,
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
) -> Shrinking:  # fmt: skip
    """Open ``model``; load its statistics or collect them on ``texts``, where one of the two is given. Blocks.

    Args:
        model, revision, memory: as of `coterie.load`.
        out: where the result is to go; refused now if it cannot.
        statistics: a file of `coterie trace --statistics`, or what it holds.
        texts: without statistics, what they are collected on; without either nothing is known: all experts and inputs
            count alike.
        skip_layers: numbers of decoder layers that stay as they are.
        merge_first: merge experts down to so many in a layer before (M-SMoE), the gates untouched.
        resume: unfinished work at ``out`` is no obstacle.

    Raises:
        OptionError: ``out`` exists, layers to skip that are not there, experts that are stored in another form
            already, or merging without knowing by what.
        CheckpointError, PromptError: as of `coterie.jobs.merge`.
    """
    refuse_existing(Path(out).expanduser(), resume)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    _refuse_kinds(checkpoint)
    if merge_first is not None:
        found = calibrated(
            checkpoint, out, statistics=statistics, texts=texts, memory=memory, skip_layers=skip_layers, resume=resume,
            say=say,
        )  # fmt: skip
        found.refuse_target(merge_first, "merging")
        options = MergeOptions(merge_first)
        merging = MergeEdit(found, plan(found, options), options)
        return Shrinking(checkpoint, found.statistics, found.chosen, merging)
    if isinstance(statistics, str | Path):
        statistics = Statistics.load(statistics)
    if statistics is not None and texts:  # looked at only in the end, and that is late to find out
        open_texts(texts, Prompts.of(checkpoint.path, checkpoint.context_length), 2)
    elif statistics is None and texts:
        statistics = collect_statistics(checkpoint, texts, None, memory, say=say).statistics
    if statistics is not None:
        statistics.check(checkpoint)
    return Shrinking(checkpoint, statistics, chosen_sites(checkpoint, skip_layers))


def _refuse_kinds(checkpoint: Checkpoint) -> None:
    kind = next((site.kind for site in checkpoint.sites if site.kind is not None), None)
    if kind is not None:
        raise OptionError(
            f"The experts of {checkpoint.path} are stored as {kind.name} already. Start from the model it was made of."
        )
