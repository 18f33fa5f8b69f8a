"""Steps of networks, dense and of experts from one definition: convolutions with their batch norms.

A network is written once, in terms of `Steps`. What `Steps` makes is plain where the network is dense
or the step is shared, and of experts where it is routed.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.experts import BatchNormExperts, ConvExperts, Experts
from coterie.layers import combined
from coterie.models.vision.gates import layer_router
from coterie.models.vision.spec import VisionSpec
from coterie.models.vision.trip import Site, Trip
from coterie.routing import Routing

__all__ = ["Act", "ConvNorm", "Kind", "NormConv", "Steps", "run"]

# routed: convolution and norm are the experts'. before: shared, in front of all routed steps. behind: the convolution
# is shared; where one decision drives the whole network one pathway leads there, whose features differ from those of
# another, and the norm is the experts'; behind decisions of many layers there is no such thing.
Kind = Literal["routed", "before", "behind"]


class Steps:
    """Makes the parts of one network.

    Args:
        spec: of the network.
        pathway: make one expert's pathway instead, as a plain network: what one image meets.
    """

    def __init__(self, spec: VisionSpec, *, pathway: bool = False) -> None:
        self.spec = spec
        self.routed = spec.routed and not pathway
        self.scaled, self.unscaled = spec.scaled, spec.unscaled

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, kind: Kind = "routed") -> nn.Module:
        """A convolution without bias that keeps the size but for the stride."""
        if kind == "routed" and self.routed:
            return ConvExperts(inputs, outputs, self.spec.experts, kernel, stride, kernel // 2)
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def norm(self, channels: int, kind: Kind = "routed") -> nn.Module:
        """A batch norm."""
        if self._has_routes(kind):
            return BatchNormExperts(channels, self.spec.experts, mode=self.spec.norm)
        return nn.BatchNorm2d(channels)

    def site(self, channels: int, kind: Kind = "routed") -> Site | None:
        """Where a step of ``channels`` inputs learns its routes; None where it needs none."""
        if not self._has_routes(kind):
            return None
        return Site(None if self.spec.placement == "image" else layer_router(self.spec, channels))

    def _has_routes(self, kind: Kind) -> bool:
        return self.routed and (kind == "routed" or (kind == "behind" and self.spec.placement == "image"))


def run(part: nn.Module, x: Tensor, routing: Routing | None) -> Tensor:
    """``x`` through a plain part, or each item through its one expert, unweighted."""
    if isinstance(part, Experts):
        assert routing is not None, "experts run by a routing"
        return part.rows(x, routing)
    return part(x)


def decide(site: Site | None, x: Tensor, trip: Trip) -> Routing | None:
    """What the site says of ``x``, None where there is no site."""
    return None if site is None else site(x, trip)


class ConvNorm(nn.Module):
    """Convolution and batch norm: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(
        self, steps: Steps, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, kind: Kind = "routed"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.site = steps.site(inputs, kind)
        self.conv = steps.conv(inputs, outputs, kernel, stride, kind)
        self.norm = steps.norm(outputs, kind)

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        routing = decide(self.site, x, trip)
        y = run(self.norm, run(self.conv, x, routing), routing)
        return y if routing is None or self.kind != "routed" else combined(y, routing)


class NormConv(nn.Module):
    """Batch norm, ReLU and convolution: [B, C, H, W] -> [B, C', H', W'], and the same for what stands beside.

    Args:
        beside: outputs of a 1x1 convolution that reads what the other reads; 0: there is none.
    """

    def __init__(
        self, steps: Steps, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, kind: Kind = "routed",
        beside: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind = kind
        self.site = steps.site(inputs, kind)
        self.norm = steps.norm(inputs, kind)
        self.conv = steps.conv(inputs, outputs, kernel, stride, kind)
        self.beside = steps.conv(inputs, beside, 1, stride, kind) if beside else None

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        return self.both(x, trip)[0]

    def both(self, x: Tensor, trip: Trip) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and what the convolution beside makes; ``x`` itself where there is none."""
        routing = decide(self.site, x, trip)
        active = F.relu(run(self.norm, x, routing))
        y = self._convolved(self.conv, active, routing)
        return y, x if self.beside is None else self._convolved(self.beside, active, routing)

    def _convolved(self, conv: nn.Module, x: Tensor, routing: Routing | None) -> Tensor:
        y = run(conv, x, routing)
        return y if routing is None or self.kind != "routed" else combined(y, routing)


class Act(nn.Module):
    """Batch norm and ReLU behind the last routed step."""

    def __init__(self, steps: Steps, channels: int) -> None:
        super().__init__()
        self.site = steps.site(channels, "behind")
        self.norm = steps.norm(channels, "behind")

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        return F.relu(run(self.norm, x, decide(self.site, x, trip)))
