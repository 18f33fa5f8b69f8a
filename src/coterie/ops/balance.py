"""What a routing costs besides its experts: balance, entropy and z losses, and the statistics they rest on.

Every loss is a scalar in float32 or wider, a mean over valid items, of one layer; mean or sum over layers is the
caller's. An item is valid where ``mask`` is True (everywhere without one) and the router allowed it something: a
router that was told of padding gives it probability 0 everywhere. A batch without valid items has loss 0 and zero
gradients, never NaN.

P [T, R] are the router's probabilities, each row divided by its sum (1 already after softmax; sigmoid scores become
comparable). n_r counts the valid (item, choice) pairs that chose route r; it takes no gradient.

    switch_balance   R * sum_r f_r Q_r     Q_r = mean_t P_tr     (Switch, arXiv 2101.03961, equations 4 to 6)
    norm="slots"     f_r = n_r / sum n     1 when all routes are equal, R when one route has everything
    norm="tokens"    f_r = n_r / T         the mean number of choices when all routes are equal
    entropy          mean_t -sum_r P log P         ln R when undecided, 0 when certain
    z_loss           mean_t logsumexp(logits)^2    (ST-MoE, arXiv 2202.08906, equation 5)

A coefficient means nothing without the form of its loss: `convert_coefficient` brings others to the slots form.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.routing import Routing

Norm = Literal["slots", "tokens"]
Nulls = Literal["averaged", "individual"]
Source = Literal["transformers", "switch", "fastmoe"]
Layers = Literal["mean", "sum"]


def switch_balance(
    routing: Routing, mask: Tensor | None = None, *, norm: Norm = "slots", num_nulls: int = 0,
    nulls: Nulls = "averaged",
) -> Tensor:  # fmt: skip
    """The Switch balance loss of one layer, over routes.

    Null routes, the last ``num_nulls``, are balanced as one: each has the mean share of all of them, so no pressure
    tells identical nulls apart (AdaMoE, arXiv 2406.13233). ``nulls="individual"`` balances every route for itself.

    Args:
        routing: with ``chosen`` and ``probs``.
        mask: [T] bool, False where padding.
        norm: whether the shares sum to 1 or to the mean number of choices (dynamic routing, arXiv 2403.07652).
        num_nulls: how many routes are null.
        nulls: averaged or individual.

    Raises:
        OptionError: an unknown word; nulls are named and there are none; there are more routes than experts and
            nobody says which are null.
    """
    _check_word("norm", norm, Norm)
    probs = _probs(routing, mask)
    share = load_shares(routing, mask, norm=norm).to(probs.dtype)
    _check_nulls(routing, num_nulls, nulls)
    if num_nulls and nulls == "averaged":
        true = len(share) - num_nulls
        share = torch.cat([share[:true], share[true:].mean().expand(num_nulls)])
    return len(share) * (share * _mean(probs)).sum()


def entropy(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of the router in nats, over all routes and not the chosen alone: the dynamic loss.

    Pushing it down makes a router decided, and one that chooses by cumulative probability frugal
    (arXiv 2403.07652).
    """
    probs = _probs(routing, mask)
    return _mean(-(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1))


def z_loss(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Mean squared log-sum-exp of the logits: keeps them small, where their rounding is fine."""
    if routing.logits is None:
        raise OptionError("The z loss needs a router's logits, and this routing has none. Leave the z loss out.")
    logits = routing.logits[_valid(routing, mask)]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return _mean(wide.logsumexp(1).square())


def load_shares(routing: Routing, mask: Tensor | None = None, *, norm: Norm = "slots") -> Tensor:
    """[R] float32: the share of choices (slots) or of items (tokens) that each route has. No gradient.

    Without choices it is 0 everywhere.
    """
    if routing.chosen is None:
        raise OptionError("The load needs what was chosen, and this routing does not say. Route with a Router.")
    valid = _valid(routing, mask)
    routes = routing.num_routes
    counts = torch.bincount(routing.chosen[valid].reshape(-1), minlength=routes + 1)[:routes]
    total = counts.sum() if norm == "slots" else valid.sum()
    return counts.float() / total.clamp_min(1)


def mean_experts(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Experts per valid item, nulls not counted: a float32 scalar, 0 without valid items. No gradient."""
    valid = _valid(routing, mask)
    return _mean(routing.experts_per_item()[valid].float())


def convert_coefficient(
    value: float, source: Source = "transformers", *, k: float = 1, num_layers: int = 1, source_layers: Layers = "mean",
    layers: Layers = "mean",
) -> float:  # fmt: skip
    """The coefficient of `switch_balance` (slots) that presses as hard at balance as ``value`` did elsewhere.

    At balance the losses are k in transformers, 1 in Switch's own form and 1/k in FastMoE's. transformers throws the
    items of all layers together, which is one loss and counts as a mean of layers (away from balance it differs: it
    lets layers make up for each other).

    Args:
        value: the coefficient, such as ``router_aux_loss_coef`` of a config.
        source: whose form it belongs to.
        k: choices per item.
        num_layers: L, where one side adds up layers and the other takes their mean.
        source_layers: what the source did over layers.
        layers: what is done here.

    Raises:
        OptionError: an unknown word.

    >>> convert_coefficient(0.01, "transformers", k=2)
    0.02
    """
    for what, word, kind in (
        ("source", source, Source),
        ("source_layers", source_layers, Layers),
        ("layers", layers, Layers),
    ):
        _check_word(what, word, kind)
    factor = {"transformers": k, "switch": 1.0, "fastmoe": 1 / k}[source]
    factor *= {"sum": num_layers, "mean": 1}[source_layers] / {"sum": num_layers, "mean": 1}[layers]
    return value * factor


def _valid(routing: Routing, mask: Tensor | None) -> Tensor:
    """[T] bool."""
    if mask is not None and mask.shape != (routing.num_items,):
        raise OptionError(f"mask must be [T={routing.num_items}], found {tuple(mask.shape)}.")
    table = routing.probs
    allowed = torch.ones(routing.num_items, dtype=torch.bool, device=routing.item.device)
    if table is not None:
        allowed = table.detach().sum(1) != 0  # NaN stays, and shows in the loss
    return allowed if mask is None else allowed & mask.bool()


def _probs(routing: Routing, mask: Tensor | None) -> Tensor:
    """[valid, R] rows that sum to one."""
    if routing.probs is None:
        raise OptionError("This loss needs a router's probabilities, and this routing has none. Set it to 0.")
    probs = routing.probs[_valid(routing, mask)]
    return probs / probs.sum(1, keepdim=True)


def _mean(rows: Tensor) -> Tensor:
    """Over the first axis; 0 with a zero gradient where it is empty."""
    return rows.sum(0) / max(1, rows.shape[0])


def _check_nulls(routing: Routing, num_nulls: int, nulls: str) -> None:
    _check_word("nulls", nulls, Nulls)
    extra = routing.num_routes - routing.num_experts
    most = extra + 1 if extra > 0 else 0  # null routes that stand for an identity share one expert
    if not 0 <= num_nulls <= most:
        raise OptionError(
            f"num_nulls={num_nulls}, but of {routing.num_routes} routes over {routing.num_experts} experts at most "
            f"{most} are null. Use a router with nulls, or leave num_nulls out."
        )
    if extra > 0 and not num_nulls and nulls == "averaged":
        raise OptionError(
            f"The router has {routing.num_routes} routes over {routing.num_experts} experts. Say num_nulls={extra} if "
            "the others are null, or nulls='individual' to balance every route for itself."
        )


def _check_word(what: str, word: str, kind: object) -> None:
    if word not in get_args(kind):
        raise OptionError(f"{what}={word!r} is not known. Write {' or '.join(map(repr, get_args(kind)))}.")
