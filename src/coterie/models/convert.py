"""A family's own experts and routers as ours: same outputs to rounding, same tensors."""

from __future__ import annotations

from typing import Any

import torch

from coterie.errors import UnsupportedError
from coterie.experts import FFN
from coterie.experts.ffn import Method
from coterie.models.compat import ffn_shape, is_experts, own_layout
from coterie.models.families import FAMILIES, Family
from coterie.routers import Router, group_limited, top_k


def experts_from(original: Any, method: Method = "grouped") -> FFN:
    """A transformers experts module as an `FFN` that shares its parameters (training one trains the other).

    Raises:
        UnsupportedError: it is no fused experts module, or computes in a way of its own.
    """
    own = own_layout(original)
    if own is None and not is_experts(original):
        raise UnsupportedError(f"{type(original).__name__} is not behind transformers' experts interface.")
    if own is not None and not own.shares(original):
        raise UnsupportedError(
            f"{type(original).__name__} keeps its experts in a layout of its own, which ours cannot share. "
            "coterie.load serves such a model."
        )
    if own is None and original.has_post_expert_norm:
        raise UnsupportedError(
            f"The experts of {type(original).__name__} share one norm, which ours have one each of: they cannot share "
            "parameters. coterie.load serves such a model."
        )
    with torch.device("meta"):
        experts = FFN(getattr(original, own.count if own else "num_experts"), ffn_shape(original), method)
    for name in experts.shape.weight_shapes():
        setattr(experts, name, getattr(original, name))
    return experts.train(original.training)


def router_from(original: Any, config: Any) -> Router:
    """A transformers router as a `Router` that shares its weight and its correction of the choice.

    Args:
        original: the gate.
        config: of its model; says how the family decides.

    Raises:
        UnsupportedError: a family that is not served.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise UnsupportedError(f"Coterie has no router for the family {kind!r}; it has: {', '.join(FAMILIES)}.")
    router = _preset(FAMILIES[kind], original, config)
    router.score.weight = original.weight
    if (bias := FAMILIES[kind].bias) is not None:
        router.select.register_buffer("correction", getattr(original, bias))
    return router.train(original.training)


def _preset(family: Family, gate: Any, config: Any) -> Router:
    renormalise = family.renormalise if isinstance(family.renormalise, bool) else getattr(config, family.renormalise)
    with torch.device("meta"):
        if family.scores == "softmax":
            return top_k(
                gate.hidden_dim, gate.num_experts, gate.top_k, renormalise=renormalise, rounded=family.rounded
            )  # fmt: skip
        groups, keep = (getattr(config, name) for name in family.groups or ())
        return group_limited(
            gate.hidden_dim, gate.num_experts, gate.top_k, num_groups=groups, keep_groups=keep,
            renormalise=renormalise, scale=1.0 if family.scale is None else getattr(config, family.scale),
        )  # fmt: skip
