"""Weights drawn for a network, as the papers do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from coterie.experts import ConvExperts
from coterie.models.vision.model import VisionModel
from coterie.models.vision.spec import VisionSpec

__all__ = ["build_vision"]


def build_vision(spec: VisionSpec, seed: int | None = None) -> VisionModel:
    """A network with fresh weights, in training mode: convolutions by Kaiming's normal rule over their fan-out.

    With one expert of full ratio it draws what the dense network draws.

    Args:
        spec: what network.
        seed: the same gives the same weights, whatever was drawn before, and leaves torch's generator as it was; None:
            they come from torch's generator.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = VisionModel(spec)
        if seed is not None:  # routers drew above; the network is to draw the same with or without one
            torch.manual_seed(seed + 2**32)
        _draw(model.network)
    return model


@torch.no_grad()
def _draw(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        for weight in _of_convolution(module):
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _of_convolution(module: nn.Module) -> Iterator[Tensor]:
    if isinstance(module, nn.Conv2d):
        yield module.weight
    if isinstance(module, ConvExperts):
        yield from module.weight.split(module.out_channels)  # the fan of one expert, not of all
