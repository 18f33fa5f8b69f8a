"""Weights drawn for a network, as the papers do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import ConvExperts
from coterie.models.vision.model import VisionModel
from coterie.models.vision.spec import VisionSpec

__all__ = ["Init", "build_vision"]

Init = Literal["fan_out", "torch"]


def build_vision(spec: VisionSpec, seed: int | None = None, init: Init = "fan_out") -> VisionModel:
    """A network with fresh weights, in training mode.

    With one expert of full ratio it draws what the dense network draws.

    Args:
        spec: what network.
        seed: the same gives the same weights, whatever was drawn before, and leaves torch's generator as it was; None:
            they come from torch's generator.
        init: of convolutions. "fan_out": Kaiming's normal rule over the fan-out, as published; "torch": what
            `torch.nn.Conv2d` draws, several times smaller. Behind a batch norm the size of weights is what the
            learning rate is measured against, so small weights learn faster at first.

    Raises:
        OptionError: an unknown init.
    """
    if init not in get_args(Init):
        raise OptionError(f"init={init!r} is not known. Write one of: {', '.join(get_args(Init))}.")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = VisionModel(spec)
        if seed is not None:  # routers drew above; the network is to draw the same with or without one
            torch.manual_seed(seed + 2**32)
        _draw(model.network, init)
    return model


@torch.no_grad()
def _draw(network: nn.Module, init: Init) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        for weight in _of_convolution(module):
            if init == "torch":
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            else:
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _of_convolution(module: nn.Module) -> Iterator[Tensor]:
    if isinstance(module, nn.Conv2d):
        yield module.weight
    if isinstance(module, ConvExperts):
        yield from module.weight.split(module.out_channels)  # the fan of one expert, not of all
