"""Experts of a group become one: neurons in the order of the group's dominant, then a mean weighted by use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.align import activation_rows, match_rows, neuron_rows, permute_neurons
from coterie.surgery.grouping import Grouping

__all__ = ["Alignment", "Reference", "merge_experts", "merge_group"]

Alignment = Literal["weight", "activation", "none"]
Reference = Literal["dominant", "first"]

Weights = Mapping[str, Tensor]
Features = Callable[[int], Tensor]


def merge_experts(
    weights: Weights, grouping: Grouping, usage: Tensor, *, align: Alignment = "weight",
    reference: Reference = "dominant", features: Features | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The experts of a layer, one for each group, in the order of the groups (MC-SMoE, equation 2).

    An expert that is alone in its group is passed on bit for bit. Lossy, but where the members of each group compute
    the same.

    Args:
        weights: [E, ...] under canonical names: up_proj [E, F, D], down_proj [E, D, F], gate_proj and biases where
            there are some.
        grouping: who is merged with whom.
        usage: [E] what a member's weight in its group is proportional to; equal weights where a group has none.
        align: how hidden neurons are matched before: by weights, by what they say on a sample, or not at all.
        reference: whose order of neurons a group takes: its dominant's, or (as in the paper's algorithm 1) that of
            the layer's first expert.
        features: expert -> [n, F], its input of down_proj on a sample common to all; for ``align="activation"``.

    Returns:
        name -> [E', ...] in the dtype of ``weights``; computed in float32.

    Raises:
        OptionError: an unknown way to align, or activations without ``features``.
        MissingExtraError: scipy is not installed.
    """
    _check(align, reference, features)
    made = [
        _one(weights, some, dominant if reference == "dominant" else 0, dominant, usage, align, features)
        for some, dominant in zip(grouping.members, grouping.dominants, strict=True)
    ]
    return {name: torch.stack([each[name] for each in made]) for name in weights}


def merge_group(experts: list[Weights], usage: Tensor) -> dict[str, Tensor]:
    """The weighted mean of ``experts``, the first of which is the dominant: ``W_1 + sum_e a_e (W_e - W_1)``.

    Written so, experts that are equal give themselves, bit for bit, whatever the weights.

    Args:
        experts: name -> one expert's weight, neurons in one order.
        usage: [n] of each expert; equal weights where all are zero.
    """
    shares = usage.float() / usage.float().sum() if usage.sum() > 0 else torch.full((len(experts),), 1 / len(experts))
    first, *others = experts
    merged = {}
    for name, weight in first.items():
        base = weight.float()
        mean = base.clone()
        for share, other in zip(shares[1:].tolist(), others, strict=True):
            mean.add_(other[name].float() - base, alpha=share)
        merged[name] = mean.to(weight.dtype)
    return merged


def _one(
    weights: Weights, some: tuple[int, ...], reference: int, dominant: int, usage: Tensor, align: str,
    features: Features | None,
) -> dict[str, Tensor]:  # fmt: skip
    if len(some) == 1:
        return {name: weight[some[0]] for name, weight in weights.items()}
    order = [dominant, *(expert for expert in some if expert != dominant)]
    aligned = [_aligned(weights, expert, reference, align, features) for expert in order]
    return merge_group(aligned, usage[order])


def _aligned(weights: Weights, expert: int, reference: int, align: str, features: Features | None) -> Weights:
    own = {name: weight[expert] for name, weight in weights.items()}
    if align == "none" or expert == reference:
        return own
    if features is not None and align == "activation":
        rows, target = activation_rows(features(reference)), activation_rows(features(expert))
    else:
        rows, target = neuron_rows({name: weight[reference] for name, weight in weights.items()}), neuron_rows(own)
    return permute_neurons(own, match_rows(rows, target))


def _check(align: str, reference: str, features: Features | None) -> None:
    if align not in get_args(Alignment):
        raise OptionError(f"Neurons are aligned by {', '.join(get_args(Alignment))}, not by {align!r}.")
    if reference not in get_args(Reference):
        raise OptionError(f"Neurons take the order of the {' or the '.join(get_args(Reference))}, not {reference!r}.")
    if align == "activation" and features is None:
        raise OptionError("Alignment by activation needs what the experts say on a sample. Align by weight instead.")
