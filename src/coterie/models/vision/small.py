"""A network for images of a few pixels: a stem and three 3x3 convolutions, seconds to train on a processor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.models.vision.steps import ConvNorm, Steps
from coterie.models.vision.trip import Trip

__all__ = ["SmallNet"]

_STEM, _WIDTHS = 16, ((16, 1), (16, 2), (32, 1))  # channels, stride


class SmallNet(nn.Module):
    """The stem has its full width in every form, and is shared like the head; the three convolutions are routed."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        width = max(1, round(_STEM * steps.spec.width))
        self.stem = ConvNorm(steps, steps.spec.channels, width, kind="before")
        convs = []
        for channels, stride in _WIDTHS:
            convs.append(ConvNorm(steps, width, steps.scaled(channels), 3, stride))
            width = steps.scaled(channels)
        self.convs = nn.ModuleList(convs)
        self.head = nn.Linear(width, steps.spec.classes)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        x = F.relu(self.stem(x, trip))
        for conv in self.convs:
            x = F.relu(conv(x, trip))
        return self.head(x.mean((2, 3)))
