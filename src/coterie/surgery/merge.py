"""Experts of a group become one: neurons in the order of the group's dominant, then a mean weighted by use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.align import activation_rows, match_rows, neuron_rows, permute_neurons
from coterie.surgery.grouping import Grouping
from coterie.surgery.pages import empty

__all__ = ["Alignment", "Reference", "match_experts", "merge_experts", "merge_group"]

Alignment = Literal["weight", "activation", "none"]
Reference = Literal["dominant", "first"]

Weights = Mapping[str, Tensor]
Features = Callable[[int], Tensor]


def match_experts(
    weights: Weights, grouping: Grouping, *, align: Alignment = "weight", reference: Reference = "dominant",
    features: Features | None = None,
) -> dict[int, Tensor]:  # fmt: skip
    """For every expert that is to be merged and has to move: [F] the order its hidden neurons take.

    Args:
        weights: [E, ...] under canonical names: up_proj [E, F, D], down_proj [E, D, F], gate_proj and biases where
            there are some.
        grouping: who is merged with whom.
        align: how neurons are matched: by weights, by what they say on a sample, or not at all.
        reference: whose order of neurons a group takes: its dominant's, or (as in the paper's algorithm 1) that of
            the layer's first expert.
        features: expert -> [n, F], its input of down_proj on a sample common to all; for ``align="activation"``.

    Raises:
        OptionError: an unknown way to align, or activations without ``features``.
        MissingExtraError: scipy is not installed.
    """
    _check(align, reference, features)
    orders: dict[int, Tensor] = {}
    for some, dominant in zip(grouping.members, grouping.dominants, strict=True):
        base = dominant if reference == "dominant" else 0
        if align == "none" or len(some) == 1:
            continue
        rows = _rows(weights, base, align, features)
        orders |= {
            expert: match_rows(rows, _rows(weights, expert, align, features)) for expert in some if expert != base
        }
    return orders


def merge_experts(
    weights: Weights, grouping: Grouping, usage: Tensor, orders: Mapping[int, Tensor] | None = None
) -> dict[str, Tensor]:
    """The experts of a layer, one for each group, in the order of the groups (MC-SMoE, equation 2).

    An expert that is alone in its group is passed on bit for bit. Lossy, but where the members of each group compute
    the same.

    Args:
        weights, grouping: as of `match_experts`.
        usage: [E] what a member's weight in its group is proportional to; equal weights where a group has none.
        orders: as `match_experts` makes them; None: neurons as they are.

    Returns:
        name -> [E', ...] in the dtype of ``weights``; computed in float32.
    """
    made: dict[str, Tensor] = {}
    for place, (some, dominant) in enumerate(zip(grouping.members, grouping.dominants, strict=True)):
        order = [dominant, *(expert for expert in some if expert != dominant)]
        merged = merge_group([_moved(weights, expert, some, orders or {}) for expert in order], usage[order])
        for name, weight in merged.items():
            if name not in made:
                made[name] = empty((len(grouping.dominants), *weight.shape), weight.dtype)
            made[name][place] = weight
    return made


def merge_group(experts: list[Weights], usage: Tensor) -> dict[str, Tensor]:
    """The weighted mean of ``experts``, the first of which is the dominant: ``W_1 + sum_e a_e (W_e - W_1)``.

    Written so, experts that are equal give themselves, bit for bit, whatever the weights.

    Args:
        experts: name -> one expert's weight, neurons in one order.
        usage: [n] of each expert; equal weights where all are zero.
    """
    shares = usage.float() / usage.float().sum() if usage.sum() > 0 else torch.full((len(experts),), 1 / len(experts))
    first, *others = experts
    if not others:
        return dict(first)
    merged = {}
    for name, weight in first.items():
        base = weight.float()
        mean = base.clone()
        for share, other in zip(shares[1:].tolist(), others, strict=True):
            mean.add_(other[name].float() - base, alpha=share)
        merged[name] = mean.to(weight.dtype)
    return merged


def _rows(weights: Weights, expert: int, align: str, features: Features | None) -> Tensor:
    if align == "activation" and features is not None:
        return activation_rows(features(expert))
    return neuron_rows({name: weight[expert] for name, weight in weights.items()})


def _moved(weights: Weights, expert: int, some: tuple[int, ...], orders: Mapping[int, Tensor]) -> Weights:
    own = {name: weight[expert] for name, weight in weights.items()}
    return permute_neurons(own, orders[expert]) if len(some) > 1 and expert in orders else own


def _check(align: str, reference: str, features: Features | None) -> None:
    if align not in get_args(Alignment):
        raise OptionError(f"Neurons are aligned by {', '.join(get_args(Alignment))}, not by {align!r}.")
    if reference not in get_args(Reference):
        raise OptionError(f"Neurons take the order of the {' or the '.join(get_args(Reference))}, not {reference!r}.")
    if align == "activation" and features is None:
        raise OptionError("Alignment by activation needs what the experts say on a sample. Align by weight instead.")
