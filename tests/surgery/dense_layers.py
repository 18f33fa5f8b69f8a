"""Small dense feed-forwards with what is known of them, for the tests of cutting."""

from __future__ import annotations

import torch

from coterie.experts import FFNShape
from coterie.surgery.feed_forward import FeedForward

WIDTH, INNER, TOKENS = 12, 32, 160
DOMAINS = ("code", "prose", "tables", "names")


def dense(*, gated=True, bias=False, dtype=torch.float32, seen=True, seed=0, layer=0, **known):
    """A `FeedForward` with random weights; with a sample and scores of four domains where it was ``seen``."""
    draw = torch.Generator().manual_seed(seed)
    shape = FFNShape(WIDTH, INNER, gated=gated, bias=bias, fused=False)
    weights = {name: torch.randn(size, generator=draw).to(dtype) for name, size in shape.weight_shapes().items()}
    if seen:
        known = {
            "inputs": torch.randn(TOKENS, WIDTH, generator=draw),
            "scores": {name: torch.rand(INNER, generator=draw) for name in DOMAINS},
            "gradients": {name: torch.rand(INNER, generator=draw) for name in DOMAINS},
        } | known
    return FeedForward(weights, shape.hidden, layer, **known)


def output(layer, x, keep=None):
    """[n, D] float32 of the feed-forward, with the channels not in ``keep`` hidden."""
    hidden = layer.activations(x)
    if keep is not None:
        mask = torch.zeros(layer.inner)
        mask[keep] = 1
        hidden = hidden * mask
    out = hidden @ layer.weights["down_proj"].float().T
    bias = layer.weights.get("down_proj_bias")
    return out if bias is None else out + bias.float()


def as_layer(layer, weights):
    """A `FeedForward` of other weights with the same activation."""
    return FeedForward(weights, layer.hidden)
