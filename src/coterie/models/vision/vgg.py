"""VGG-16 with batch norm (Simonyan and Zisserman, arXiv 1409.1556) and a head of three layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.models.vision.steps import ConvNorm, Steps
from coterie.models.vision.trip import Trip

__all__ = ["VGG16"]

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a 2x2 pool stands between
_MAP, _HIDDEN = 2, 256  # the head reads a map of 2x2


class VGG16(nn.Module):
    """All convolutions but the first are routed; the first is as narrow as they are. The head is shared."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        width = steps.spec.channels
        convs: list[nn.Module] = []
        for stage in _STAGES:
            for channels in stage:
                outputs = steps.scaled(channels)
                convs.append(ConvNorm(steps, width, outputs, kind="routed" if convs else "before"))
                width = outputs
        self.convs = nn.ModuleList(convs)
        hidden = max(1, round(_HIDDEN * steps.spec.width))
        self.head = nn.Sequential(
            nn.Linear(width * _MAP * _MAP, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, steps.spec.classes),
        )  # fmt: skip

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        convs = iter(self.convs)
        for number, stage in enumerate(_STAGES):
            x = x if number == 0 else F.max_pool2d(x, 2)
            for _ in stage:
                x = F.relu(next(convs)(x, trip))
        return self.head(F.adaptive_avg_pool2d(x, _MAP).flatten(1))
