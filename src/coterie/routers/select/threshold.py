"""What the selections with a threshold have in common: the setting, its cap, and the curve from mean experts to it."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.select import check_k
from coterie.ops.threshold import check_share
from coterie.routers.base import Scores, Select
from coterie.routers.limits import asked_k
from coterie.routing import RouteContext

# points of a curve, and what its two rows are multiplied by: whole numbers stay exact when a model is cast to bfloat16
POINTS = 65
_UNITS = (1 << 16, 1 << 30)


class Threshold(Select):
    """A selection by one number from 0 to 1, taking as many routes as that allows.

    Request-time options: ``p`` replaces the number, whatever it is called here; ``mean_experts`` asks for the number
    that gives so many experts per item on average, by the curve that `coterie.routers.calibrate` stored; ``k`` caps
    the routes of an item.

    Args:
        value: the number.
        num_routes: R.
        k_max: routes an item may have at most, the best ones; None: no cap.

    Attributes:
        curve: [2, POINTS] int32 buffer: mean experts and the setting that gives them, in fixed point; 0 until
            calibrated. Saved with the model.

    Raises:
        OptionError: the number is not in 0..1, or ``k_max`` not in 1..R.
    """

    variable_k = True
    name: str
    rising: bool  # whether a higher setting takes more routes
    curve: Tensor

    def __init__(self, value: float, num_routes: int, *, k_max: int | None = None) -> None:
        super().__init__()
        check_share(self.name, value)
        if k_max is not None:
            check_k(k_max, num_routes)
        self.value, self.num_routes, self.k_max = float(value), num_routes, k_max
        self.register_buffer("curve", torch.zeros(2, POINTS, dtype=torch.int32))

    @abstractmethod
    def rule(self, probs: Tensor, value: float, k_max: int | None, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chosen [T, K] and [T] bool: who was cut by ``k_max``."""

    @abstractmethod
    def entries(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """[T, R] settings from which on each route is taken, in rank order, and [T, R] int64 which routes."""

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        return self.choose(scores, ctx)[0]

    def choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        """With a cap, ``truncated`` is the share of items that it cut short, [] float32."""
        value, cap = self.setting(ctx), self.k_max
        if "k" in ctx.overrides:
            cap = asked_k(self.num_routes, self.num_routes, ctx)
        allowed = scores.allowed
        if value == (1.0 if self.rising else 0.0):  # everybody, but for -inf, which probabilities cannot tell from 0
            alive = scores.logits != float("-inf")
            allowed = alive if allowed is None else alive & allowed
        chosen, cut = self.rule(scores.probs, value, cap, allowed)
        return chosen, {} if cap is None else {"truncated": _share(cut, ctx.mask)}

    def setting(self, ctx: RouteContext) -> float:
        """The number this call goes by.

        Raises:
            OptionError: an override is out of range, or asks for mean experts without calibration.
        """
        if "mean_experts" in ctx.overrides:
            if "p" in ctx.overrides:
                raise OptionError("p and mean_experts ask for two thresholds at once: give one of them.")
            return self._for_mean(ctx.overrides["mean_experts"])
        value = ctx.overrides.get("p", self.value)
        check_share("p", value)
        return float(value)

    def store_curve(self, means: Sequence[float], settings: Sequence[float]) -> None:
        """Keep a curve of POINTS points, ascending in mean experts. Mutates the buffer in place."""
        rows = [[round(x * unit) for x in row] for row, unit in zip((means, settings), _UNITS, strict=True)]
        self.curve.copy_(torch.tensor(rows, dtype=torch.int32))

    def stored_curve(self) -> tuple[list[float], list[float]] | None:
        """Mean experts and settings as `store_curve` got them; None before calibration."""
        if not bool(self.curve[0].any()):
            return None
        means, settings = (
            [whole / unit for whole in row] for row, unit in zip(self.curve.tolist(), _UNITS, strict=True)
        )
        return means, settings

    def _for_mean(self, target: object) -> float:
        curve = self.stored_curve()
        if curve is None:
            raise OptionError(
                "mean_experts needs a calibrated router: call coterie.routers.calibrate with probabilities of some "
                "text once and save the model, or give p."
            )
        means, settings = curve
        low, high = means[0], means[-1]
        if isinstance(target, bool) or not isinstance(target, int | float) or not low <= target <= high:
            raise OptionError(f"mean_experts={target!r} is not allowed: this router can use {low:.2f} to {high:.2f}.")
        place = max(bisect_left(means, target), 1)
        low, high = means[place - 1], means[place]
        share = 0.0 if high == low else (target - low) / (high - low)
        return settings[place - 1] + share * (settings[place] - settings[place - 1])


def _share(cut: Tensor, mask: Tensor | None) -> Tensor:
    """[] float32: the share of real items; padding has no routes and is never cut."""
    real = cut.new_full((), len(cut), dtype=torch.int64) if mask is None else mask.sum()
    return cut.sum().float() / real.clamp(min=1)
