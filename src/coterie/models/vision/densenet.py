"""DenseNet of depth 40 and growth 12 (Huang et al., arXiv 1608.06993): three blocks of six bottleneck layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.models.vision.stems import Stem
from coterie.models.vision.steps import Act, NormConv, Steps
from coterie.models.vision.trip import Trip

__all__ = ["DenseNet"]

_GROWTH, _BOTTLENECK, _BLOCKS, _LAYERS = 12, 4, 3, 6


class _Layer(nn.Module):
    """Adds ``growth`` channels to those it reads; both its convolutions are routed."""

    def __init__(self, steps: Steps, inputs: int, growth: int) -> None:
        super().__init__()
        self.first = NormConv(steps, inputs, _BOTTLENECK * growth, 1)
        self.second = NormConv(steps, _BOTTLENECK * growth, growth)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        return torch.cat([x, self.second(self.first(x, trip), trip)], 1)


class DenseNet(nn.Module):
    """Stem, the transitions between the blocks, which halve channels and sides, and the head are shared."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        growth, width = steps.scaled(_GROWTH), steps.scaled(2 * _GROWTH)
        self.stem = Stem(steps, width, normed=False)
        blocks, transitions = [], []
        for number in range(_BLOCKS):
            blocks.append(nn.ModuleList([_Layer(steps, width + at * growth, growth) for at in range(_LAYERS)]))
            width += _LAYERS * growth
            if number < _BLOCKS - 1:
                transitions.append(NormConv(steps, width, width // 2, 1, kind="behind"))
                width //= 2
        self.blocks, self.transitions = nn.ModuleList(blocks), nn.ModuleList(transitions)
        self.last = Act(steps, width)
        self.head = nn.Linear(width, steps.spec.classes)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        x = self.stem(x, trip)
        for number, block in enumerate(self.blocks):
            x = x if number == 0 else F.avg_pool2d(self.transitions[number - 1](x, trip), 2)
            for layer in block:  # type: ignore[attr-defined]
                x = layer(x, trip)
        return self.head(self.last(x, trip).mean((2, 3)))
