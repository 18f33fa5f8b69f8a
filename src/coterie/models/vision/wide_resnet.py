"""WideResNet-28-10 (Zagoruyko and Komodakis, arXiv 1605.07146): norms and ReLUs in front of the convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from coterie.models.vision.stems import Stem
from coterie.models.vision.steps import Act, NormConv, Steps
from coterie.models.vision.trip import Trip

__all__ = ["WideResNet"]

_STAGES = ((160, 1), (320, 2), (640, 2))  # channels, stride of the first block
_BLOCKS = 4  # of two convolutions each, per stage: 28 layers


class _Block(nn.Module):
    """All convolutions are routed, the projection included, which reads what the first one reads."""

    def __init__(self, steps: Steps, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.first = NormConv(steps, inputs, outputs, 3, stride, beside=0 if same else outputs)
        self.second = NormConv(steps, outputs, outputs)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        y, shortcut = self.first.both(x, trip)
        return self.second(y, trip) + shortcut


class WideResNet(nn.Module):
    """The stem is as narrow as the experts and shared; so are the last norm and the head."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        width = steps.scaled(16)
        self.stem = Stem(steps, width, normed=False)
        blocks = []
        for channels, stride in _STAGES:
            for number in range(_BLOCKS):
                blocks.append(_Block(steps, width, steps.scaled(channels), stride if number == 0 else 1))
                width = steps.scaled(channels)
        self.blocks = nn.ModuleList(blocks)
        self.last = Act(steps, width)
        self.head = nn.Linear(width, steps.spec.classes)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        x = self.stem(x, trip)
        for block in self.blocks:
            x = block(x, trip)
        return self.head(self.last(x, trip).mean((2, 3)))
