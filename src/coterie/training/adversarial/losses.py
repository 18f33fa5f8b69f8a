"""Losses of adversarial training, over images and over routes. Each is in float32 or wider.

    divergence   KL(p || q) per image, p = softmax(clean), q = softmax(perturbed), from logits on both sides
    trades       CE(f(x), y) + beta * mean KL(f(x) || f(x'))           (Zhang et al. 2019, arXiv 1901.08573)
    route_drift  mean KL(s(x) || s(x')), the mean over routers         (AdvMoE, arXiv 2308.10110)
    route_balance, route_z: those of `coterie.ops.balance`, the mean over routers

Logits far apart stay finite: a softmax that underflows to zero would make the gradient of x log x no number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.ops.balance import switch_balance, z_loss
from coterie.routing import Routing
from coterie.training.adversarial.view import View, check_routed


def image_divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """[B] nats: KL(softmax(clean) || softmax(perturbed)) of logits [B, N]. Gradient flows to both."""
    target, found = F.log_softmax(clean, dim=1), F.log_softmax(perturbed, dim=1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(1)


def trades(clean: Tensor, perturbed: Tensor, labels: Tensor, beta: float) -> Tensor:
    """A scalar: cross entropy of the clean logits [B, N], and ``beta`` times the mean divergence of the perturbed."""
    return F.cross_entropy(clean, labels) + beta * image_divergence(clean, perturbed).mean()


def route_divergence(clean: View, perturbed: View) -> Tensor:
    """[B] nats: how far the routers' softmax moved, the mean over routers. Gradient flows to both.

    Raises:
        OptionError: no router decided.
    """
    pairs = zip(check_routed(clean.routings), check_routed(perturbed.routings), strict=True)
    each = [image_divergence(logits_of(one), logits_of(other)) for one, other in pairs]
    return torch.stack(each).mean(0)


def route_drift(clean: View, perturbed: View) -> Tensor:
    """A scalar: the mean of `route_divergence` over images."""
    return route_divergence(clean, perturbed).mean()


def route_balance(*views: View) -> Tensor:
    """A scalar, 1 where routes are used evenly: N * sum_e f_e P_e, the mean over routers and over the views."""
    return _mean_over(switch_balance, views)


def route_z(*views: View) -> Tensor:
    """A scalar: mean squared log-sum-exp of the routers' logits, the mean over routers and over the views."""
    return _mean_over(z_loss, views)


def logits_of(routing: Routing) -> Tensor:
    """[B, R] float32 or wider."""
    logits = routing.logits
    assert logits is not None
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _mean_over(loss: Callable[[Routing], Tensor], views: Sequence[View]) -> Tensor:
    return torch.stack([loss(routing) for view in views for routing in check_routed(view.routings)]).mean()
