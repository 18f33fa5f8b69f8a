"""A checkpoint with what is known of it: statistics, how its routers decide, and which of its layers are to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointError, OptionError
from coterie.jobs.locate import locate
from coterie.jobs.sheet import ranges
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.statistics import SiteStatistics, Statistics
from coterie.surgery.deciding import Decider
from coterie.surgery.layer import LayerExperts, read_layer
from coterie.surgery.rewrite import CONTAINERS
from coterie.surgery.router_knowledge import RouterKnowledge, RouterLimits, router_knowledge
from coterie.surgery.writer import refuse_existing

__all__ = ["Calibrated", "calibrated"]

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What surgery on experts starts from.

    Attributes:
        checkpoint: opened.
        statistics: of it.
        knowledge: module path of the experts -> what is known of their router.
        chosen: the layers that are to change, in order.
    """

    checkpoint: Checkpoint
    statistics: Statistics
    knowledge: Mapping[str, RouterKnowledge]
    chosen: tuple[ExpertSite, ...]

    @property
    def sites(self) -> list[SiteStatistics]:
        """Statistics of the chosen layers."""
        return [self.statistics[site.name] for site in self.chosen]

    @property
    def decide(self) -> list[Decider | None]:
        """How the router of each chosen layer decides."""
        return [self.knowledge[site.name].decide for site in self.chosen]

    @property
    def limits(self) -> RouterLimits:
        """What all routers of the chosen layers can lose."""
        each = [self.knowledge[site.name].limits for site in self.chosen]
        refusal = next((one.refusal for one in each if one.refusal), "")
        return RouterLimits(max(one.least for one in each), lcm(*(one.blocks for one in each)), refusal)

    def read(self, site: SiteStatistics) -> LayerExperts:
        """The weights of a layer."""
        return read_layer(self.checkpoint, next(each for each in self.chosen if each.name == site.name))

    def facts(self) -> dict[str, Any]:
        """What a model's card says of the calibration."""
        about = self.statistics.about
        texts = ", ".join(f"{text['name']} ({text['tokens']} tokens)" for text in about.get("texts", []))
        return {"tokens": self.statistics.tokens, "texts": texts, "statistics of": self.statistics.model[:12]}

    def refuse_target(self, experts: int, verb: str) -> None:
        """Refuse a number of experts that is not fewer than there are.

        Raises:
            OptionError: it is not; says what is.
        """
        fewest = min(site.num_experts for site in self.chosen)
        if not 1 <= experts < fewest:
            more = " More are made by: coterie upcycle" if experts > fewest else ""
            raise OptionError(
                f"{self.checkpoint.path} has {fewest} experts in a layer, and {experts} are asked for: {verb} leaves "
                f"fewer. Ask for 1 to {fewest - 1}.{more}"
            )


def calibrated(
    model: str | Path | Checkpoint, out: str | Path, *, statistics: str | Path | Statistics | None = None,
    texts: Sequence[str | Path] | Mapping[str, str] = (), memory: str | int | None = None,
    skip_layers: Sequence[int] = (), revision: str | None = None, resume: bool = False,
    container: str = "auto", say: Say = lambda text: None,
) -> Calibrated:  # fmt: skip
    """Open ``model`` and load its statistics, or collect them on ``texts``. Blocks.

    Args:
        model, revision, memory: as of `coterie.load`.
        out: where the result is to go; refused now if it cannot.
        statistics: a file of `coterie.jobs.collect_statistics`, or what it returned.
        texts: in place of it: files, or name -> text. Beside statistics they are not looked at here.
        skip_layers: numbers of decoder layers that stay as they are.
        resume: unfinished work at ``out`` is no obstacle.
        container: what the result is to be; only looked at.

    Raises:
        OptionError: neither statistics nor texts, ``out`` exists, or layers to skip that are not there.
        CheckpointError: the checkpoint or the statistics are damaged, or the statistics are of another model.
        PromptError: a text is missing, empty, binary or too short.
    """
    refuse_existing(Path(out).expanduser(), resume)
    if statistics is None and not texts:
        raise OptionError(
            "Say what the experts are judged by: --text notes.txt, or --statistics stats.safetensors, which coterie "
            "trace MODEL --text notes.txt --statistics stats.safetensors makes."
        )
    if container not in CONTAINERS:
        raise OptionError(f"There is no container {container!r}. There are: {', '.join(CONTAINERS)}.")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    _refuse_unlike(checkpoint)
    chosen = chosen_sites(checkpoint, skip_layers)
    if isinstance(statistics, str | Path):
        statistics = Statistics.load(statistics)
    elif statistics is None:
        statistics = collect_statistics(checkpoint, texts, None, memory, say=say).statistics
    statistics.check(checkpoint)
    say("Asking the routers how they decide")
    found = Calibrated(checkpoint, statistics, router_knowledge(checkpoint), chosen)
    _refuse_missing(found)
    return found


def _refuse_unlike(checkpoint: Checkpoint) -> None:
    if any(site.experts_of is not None for site in checkpoint.sites):
        raise OptionError(
            f"The experts of {checkpoint.path} were merged already: several rows of its gates lead to one expert. "
            "Start from the model it was made of."
        )


def chosen_sites(checkpoint: Checkpoint, skip: Sequence[int]) -> tuple[ExpertSite, ...]:
    """The layers with experts but for those of the decoder layers ``skip``.

    Raises:
        OptionError: one of them has no experts, or none is left.
    """
    layers = [site.layer for site in checkpoint.sites]
    unknown = sorted(set(skip) - set(layers))
    if unknown:
        raise OptionError(
            f"Layer {unknown[0]} has no experts, so that it cannot be skipped; layers {ranges(sorted(layers))} have."
        )
    chosen = tuple(site for site in checkpoint.sites if site.layer not in skip)
    if not chosen:
        raise OptionError("All layers with experts are skipped: nothing is left to do.")
    return chosen


def _refuse_missing(found: Calibrated) -> None:
    for site in found.chosen:
        if site.name not in found.statistics.sites or found.statistics[site.name].num_experts != site.num_experts:
            raise CheckpointError(
                f"The statistics do not fit {found.checkpoint.path}: they say nothing of {site.num_experts} experts in "
                f"{site.name}. Collect them again: coterie trace MODEL --text FILE --statistics FILE"
            )
