"""First rows of a router over experts that were cut from a dense layer, from what they do on calibration text.

The gates of native containers are one matrix [E, D] without bias, and their weights are a softmax. Two things hang
on a row: its direction says which items an expert gets, its length how unequal the weights are. The direction comes
from a start below, the length from ``sharpness``: the standard deviation of the logits. Where it is small, weights are
nearly uniform, so that experts which were dealt every channel once are, all on, the dense layer to that precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.registry import Registry
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.upcycle import without

__all__ = ["ROUTER_STARTS", "RouterStart", "agreement", "contributions", "first_rows"]

RouterStart = Callable[[FeedForward, Tensor, Tensor | None, int], Tensor]
"""(layer, own [E, m] channels, worth [n, E] of each expert for each token of the sample or None, seed) -> [E, D]."""

ROUTER_STARTS: Registry[RouterStart] = Registry("router start")

# of the mean eigenvalue of the inputs' covariance: enough where there are fewer tokens than dimensions
_RIDGE = 0.1


@ROUTER_STARTS.register("zero")
def zero(layer: FeedForward, own: Tensor, worth: Tensor | None, seed: int) -> Tensor:
    """All experts alike: exactly uniform weights, and experts 0 to k - 1 for every token."""
    return torch.zeros(len(own), layer.width)


@ROUTER_STARTS.register("random")
def random(layer: FeedForward, own: Tensor, worth: Tensor | None, seed: int) -> Tensor:
    """Rows drawn from a normal distribution."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer.layer)
    return torch.randn(len(own), layer.width, generator=generator)


@ROUTER_STARTS.register("means")
def means(layer: FeedForward, own: Tensor, worth: Tensor | None, seed: int) -> Tensor:
    """The mean input of the tokens that an expert does most for, less the mean of all and at a right angle to it."""
    x, best = layer.sample(), _known(layer, worth).argmax(1)
    centre = x.mean(0)
    rows = torch.zeros(len(own), layer.width).index_add_(0, best, x - centre)
    return F.normalize(without(rows, centre), dim=1)


@ROUTER_STARTS.register("fit")
def fit(layer: FeedForward, own: Tensor, worth: Tensor | None, seed: int) -> Tensor:
    """The linear map that foretells what each expert does for a token, by ridge regression."""
    x, wanted = layer.sample().double(), _known(layer, worth).double()
    wanted = wanted - wanted.mean(1, keepdim=True)  # a softmax does not see what all experts have in common
    ridge = _RIDGE * x.square().sum() / min(x.shape)
    if len(x) < x.shape[1]:  # the smaller of two equal systems
        return (x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x)), wanted)).T.float()
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ wanted).T.float()


@ROUTER_STARTS.register("representative")
def representative(layer: FeedForward, own: Tensor, worth: Tensor | None, seed: int) -> Tensor:
    """The gate row of the channel that goes most with its expert's worth (the linear part of CMoE's router)."""
    read = layer.weights["gate_proj" if layer.gated else "up_proj"].float()
    x, wanted = layer.sample(), _known(layer, worth)
    wanted = wanted - wanted.mean(0)
    rows = []
    for expert, part in enumerate(own):
        logits = x @ read[part].T
        along = F.normalize(logits - logits.mean(0), dim=0).T @ wanted[:, expert]
        best = int(along.abs().argmax()) if len(part) else 0
        row = read[part[best]] * along[best].sign() if len(part) else torch.zeros(layer.width)
        rows.append(row / (x @ row).std().clamp(min=1e-12))
    return torch.stack(rows)


def first_rows(
    start: str, layer: FeedForward, own: Tensor, worth: Tensor | None, *, sharpness: float = 1e-3, seed: int = 0
) -> Tensor:
    """[E, D] float32: rows of the start called ``start``, so long that logits vary by ``sharpness`` over the sample.

    Without a sample, inputs are taken to be of length sqrt(D), as an RMS norm leaves them.

    Raises:
        OptionError: no such start, or it needs text and there is none.
    """
    rows = ROUTER_STARTS.get(start)(layer, own, worth, seed)
    if layer.inputs is not None and len(layer.inputs):
        logits = layer.sample() @ rows.T
        spread = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    else:
        spread = rows.norm(dim=1).mean()
    return rows * (sharpness / spread) if spread > 0 else rows


def contributions(own: Tensor, target: Tensor) -> Tensor:
    """[n, E]: how much of the dense output each expert gives, along it; of experts dealt out once they sum to one.

    Args:
        own: [E, n, D] outputs of the experts.
        target: [n, D] what they should sum to.
    """
    return (own * target).sum(-1).T / target.square().sum(-1, keepdim=True).clamp(min=1e-30)


def agreement(rows: Tensor, x: Tensor, worth: Tensor, k: int) -> float:
    """Share of the ``k`` experts of most worth that the router chooses, over tokens ``x [n, D]``; chance is k / E."""
    chosen = (x.float() @ rows.T).topk(k, dim=1).indices
    best = worth.topk(k, dim=1).indices
    return float((chosen[:, :, None] == best[:, None, :]).any(-1).float().mean())


def _known(layer: FeedForward, worth: Tensor | None) -> Tensor:
    """``worth``, or the sentence of what is missing."""
    if worth is None:
        layer.sample()  # raises: worth is made of the sample
        raise AssertionError("a sample without worth")
    return worth
