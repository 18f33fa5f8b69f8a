"""ResNet-18 (He et al., arXiv 1512.03385): eight blocks of two 3x3 convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.models.vision.stems import Stem
from coterie.models.vision.steps import ConvNorm, Steps
from coterie.models.vision.trip import Trip

__all__ = ["ResNet18"]

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


class _Block(nn.Module):
    """The two convolutions are routed, the projection beside them is shared."""

    def __init__(self, steps: Steps, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(steps, inputs, outputs, 3, stride)
        self.second = ConvNorm(steps, outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else ConvNorm(steps, inputs, outputs, 1, stride, "behind")

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        y = self.second(F.relu(self.first(x, trip)), trip)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x, trip)))


class ResNet18(nn.Module):
    """The stem has its full width however narrow the experts are, and is shared; so are projections and head."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        width = steps.unscaled(64)
        self.stem = Stem(steps, width, normed=True)
        blocks = []
        for channels, stride in _STAGES:
            for step in (stride, 1):
                blocks.append(_Block(steps, width, steps.scaled(channels), step))
                width = steps.scaled(channels)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, steps.spec.classes)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        x = self.stem(x, trip)
        for block in self.blocks:
            x = block(x, trip)
        return self.head(x.mean((2, 3)))
