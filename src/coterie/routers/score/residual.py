"""Images to logits by the residual net that is usual for 32x32 pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.routers.base import Score
from coterie.routers.score.image import bounded, check_images, check_sizes
from coterie.routing import RouteContext

_DEPTHS = (8, 14, 20, 26, 32, 44, 56)


class ResidualScore(Score):
    """A residual net of ``depth`` layers (He et al., arXiv 1512.03385, section 4.2), the router of AdvMoE.

    One convolution, three stages of (depth - 2) / 6 blocks with ``width``, twice and four times as many channels,
    mean over the pixels, a linear map. Shortcuts have no parameters: where channels double, every second pixel, and
    zeros. At depth 20 and width 16 it has 269 202 parameters for two routes of RGB images.

    It normalises by batch statistics in training mode, so there a route depends on the other images and the scope is
    "batch"; in eval mode it is "image". Decide, evaluate and attack in eval mode.

    Args:
        num_routes: R.
        channels: C of the items [T, C, H, W]; H and W are free.
        depth: 8, 14, 20 and so on.
        width: channels of the first stage.
        bound: as in `PooledScore`.

    Raises:
        OptionError: a number is not allowed.
    """

    def __init__(
        self, num_routes: int, channels: int = 3, *, depth: int = 20, width: int = 16, bound: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(bound, _DEPTHS, num_routes=num_routes, channels=channels, depth=depth, width=width)
        self.num_routes, self.channels, self.bound = num_routes, channels, bound
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        widths = [width * 2**stage for stage in range(3) for _ in range((depth - 2) // 6)]
        self.blocks = nn.Sequential(*(_Block(i, o) for i, o in zip([width, *widths], widths, strict=False)))
        self.head = nn.Linear(4 * width, num_routes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.train()

    def train(self, mode: bool = True) -> ResidualScore:
        """As of any module; the declared scope follows."""
        self.scope = "batch" if mode else "image"
        return super().train(mode)

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_images(x, self.channels)
        features = self.blocks(F.relu(self.stem(x)))
        return bounded(self.head(features.mean((2, 3))), self.bound), None


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        first: dict[str, Any] = {"padding": 1, "bias": False}
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, **first)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, **first)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self._shortcut(x, y.shape[1]))

    def _shortcut(self, x: Tensor, outputs: int) -> Tensor:
        if self.stride == 1:
            return x
        missing = outputs - x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))
