"""A layer on a sample of its inputs: what its experts say, and how far a changed layer is from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from coterie.experts import FFNShape, expert_forward
from coterie.surgery.deciding import Decider, router_logits
from coterie.surgery.layer import LayerExperts
from coterie.surgery.subsets import OutputSample

__all__ = ["LayerSample", "expert_hidden", "sample_of"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LayerSample:
    """The routed part of one layer, on items that came through it. What is shared by all items is left out.

    Attributes:
        weights: [E, ...] under canonical names, as `coterie.surgery.LayerExperts` has them.
        router: ``weight`` [R, D] and, where there are, ``bias`` and ``correction`` [R].
        shape: of one expert, as `coterie.surgery.LayerExperts` has it.
        inputs: [n, D].
        decide: how the router chooses.
    """

    weights: Weights
    router: Weights
    shape: FFNShape
    inputs: Tensor
    decide: Decider

    @cached_property
    def output(self) -> Tensor:
        """[n, D] float32 of the layer as it is."""
        return self.output_of(self.weights, self.router)

    def output_of(self, weights: Weights, router: Weights, experts_of: Sequence[int] | None = None) -> Tensor:
        """[n, D] float32 with other experts, rows of the router, or a map from routes to experts."""
        x = self.inputs.float()
        chosen, gates = self.decide(router_logits(x, router), router.get("correction"))
        experts = chosen if experts_of is None else torch.tensor(experts_of)[chosen]
        output = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            item, place = (experts == expert).nonzero(as_tuple=True)
            rows = expert_forward(x[item], _one(weights, expert), self.shape)
            output.index_add_(0, item, rows * gates[item, place, None])
        return output

    def error(self, weights: Weights, router: Weights, experts_of: Sequence[int] | None = None) -> float:
        """Norm of what changes over the norm of the output as it is: 0 for the same layer, 1 for silence."""
        other = self.output_of(weights, router, experts_of)
        return float((other - self.output).norm() / self.output.norm().clamp(min=torch.finfo(torch.float32).tiny))

    def features(self, expert: int) -> Tensor:
        """[n, F] float32: what ``expert`` gives its projection down, for every item of the sample."""
        return expert_hidden(self.inputs.float(), _one(self.weights, expert), self.shape)

    def outputs(self, items: int) -> OutputSample:
        """What every expert makes of the first ``items`` items, for `coterie.surgery.subsets`."""
        x = self.inputs[:items].float()
        experts = range(len(self.weights["down_proj"]))
        rows = torch.stack([expert_forward(x, _one(self.weights, expert), self.shape) for expert in experts])
        logits = router_logits(x, self.router)
        return OutputSample.of(rows, logits, self.decide, self.router.get("correction"))


def sample_of(layer: LayerExperts, inputs: Tensor, decide: Decider | None) -> LayerSample | None:
    """``layer`` on a sample of ``inputs`` [n, D]; None where what it computes is not known well enough.

    That is where the router's way to decide is not known, where its gate has tensors beside a matrix, a bias and a
    correction, or where experts end in a norm of their own.
    """
    known = {"weight", "bias", "correction"}
    if decide is None or layer.kept or not {"weight"} <= layer.router.keys() <= known or layer.shape.post_norm:
        return None
    return LayerSample(layer.weights, layer.router, layer.shape, inputs, decide)


def expert_hidden(x: Tensor, weights: Weights, shape: FFNShape) -> Tensor:
    """[n, F] from rows ``x`` [n, D]: the input of the projection down. ``shape`` as in `LayerSample`."""
    ups = [_linear(x, weights, name) for name in shape.up_names]
    return shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    rows = x @ weights[name].T
    return rows + weights[f"{name}_bias"] if f"{name}_bias" in weights else rows


def _one(weights: Weights, expert: int) -> dict[str, Tensor]:
    return {name: weight[expert].float() for name, weight in weights.items()}
