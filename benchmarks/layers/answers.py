"""Whether the arms computed the same: outputs, and gradients of x and of every parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.arms import DENSE, Contest

# relative error (L2) that another order of rounding may cause; one wrong expert of one token exceeds it
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}


def results(contest: Contest, arm: str, x: Tensor, backward: bool) -> list[Tensor]:
    """What ``arm`` makes of x: its output, and where ``backward`` the gradients of x and the parameters."""
    layer = contest.layers[arm][0]
    if not backward:
        with torch.no_grad():
            return [layer(x)]
    contest.forget_gradients()
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y))
    found = [y.detach(), x.grad, *[parameter.grad for parameter in contest.parameters]]
    contest.forget_gradients()
    return [tensor for tensor in found if tensor is not None]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest |a - b| / |b| of the tensors; infinite where one is missing or not finite."""
    if len(found) != len(wanted):
        return float("inf")
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if not torch.isfinite(a).all():
            return float("inf")
        difference = torch.linalg.vector_norm((a - b).float()) / torch.linalg.vector_norm(b.float())
        worst = max(worst, float(difference))
    return worst


def errors(found: dict[str, list[Tensor]], reference: str) -> dict[str, float]:
    """Of every arm but the dense one, which computes something else."""
    return {arm: error(tensors, found[reference]) for arm, tensors in found.items() if arm != DENSE}
