"""Which experts of a layer are worth keeping, and the layer with those alone. Lossy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.statistics import SiteStatistics
from coterie.registry import Registry
from coterie.surgery.pages import stacked

__all__ = ["SALIENCY", "Saliency", "curve_counts", "keep_rows"]

Saliency = Callable[[SiteStatistics, Mapping[str, Tensor], torch.Generator], Tensor]
"""(statistics of a layer, its router's tensors, source of chance) -> [E], larger is better."""

SALIENCY: Registry[Saliency] = Registry("way to prune")


@SALIENCY.register("frequency")
def _frequency(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """How often an expert is chosen."""
    return site.usage


@SALIENCY.register("gate-mass")
def _gate_mass(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Sum of the weights with which it is chosen (soft counting)."""
    return site.gate_mass


@SALIENCY.register("reap")
def _reap(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Mean of weight times norm of the output, over its tokens (REAP, arXiv 2510.13999)."""
    return site.reap


@SALIENCY.register("output-norm")
def _output_norm(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Sum of the norms of its outputs (expert activation norm)."""
    return site.output_norm * site.usage


@SALIENCY.register("router-norm")
def _router_norm(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Norm of its row of the router; no text is looked at."""
    return router["weight"].float().norm(dim=1)


@SALIENCY.register("random")
def _random(site: SiteStatistics, router: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Drawn: what any other way must beat."""
    return torch.rand(site.num_experts, generator=generator)


def keep_rows(tensors: Mapping[str, Tensor], keep: Sequence[int]) -> dict[str, Tensor]:
    """The rows ``keep`` of every tensor: of [E, ...] weights, or of a router's tensors."""
    return {name: _chosen(tensor, keep) for name, tensor in tensors.items()}


def _chosen(tensor: Tensor, keep: Sequence[int]) -> Tensor:
    if tensor.device.type != "cpu" or tensor.requires_grad or tensor.dim() < 3 or not keep:
        return tensor.index_select(0, torch.tensor(keep, device=tensor.device))
    return stacked([tensor[expert] for expert in keep])


def curve_counts(curves: Sequence[Sequence[float]], total: int, blocks: int = 1) -> list[int]:
    """How many experts each layer loses, so that ``total`` are gone and the sum of squared errors stays small.

    Experts go one after the other, each time in the layer whose squared error then grows least.

    Args:
        curves: of each layer, its error after its first, second, ... expert has gone; as many as can go.
        total: to go in all layers.
        blocks: experts that go at a time; a multiple of it is in every curve.

    Raises:
        OptionError: fewer can go.
    """
    most = sum(map(len, curves))
    if total > most or total % blocks:
        raise OptionError(f"{total} experts are to go, {most} can, {blocks} at a time.")
    steps = [[0.0, *curve[blocks - 1 :: blocks]] for curve in curves]
    gone = [0] * len(curves)
    for _ in range(total // blocks):
        growth = [
            (errors[taken + 1] ** 2 - errors[taken] ** 2, layer)
            for layer, (errors, taken) in enumerate(zip(steps, gone, strict=True))
            if taken + 1 < len(errors)
        ]
        gone[min(growth)[1]] += 1
    return [taken * blocks for taken in gone]
