"""A random router that never learns: drawn once from a seed, kept with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Score
from coterie.routers.score.products import check_items, wide_linear
from coterie.routing import RouteContext


class Frozen(Score):
    """``logits = x @ weight.T + bias`` with a matrix that stays as it was drawn (SMoE-Dropout, arXiv 2303.01610).

    Matrix, bias and seed are buffers: no optimiser and no weight decay sees them, and they are saved
    with the model, since another matrix would send every item elsewhere. The matrix and the logits are
    float32 or wider whatever the model is cast to: the logits are small and lie close together, so that
    bfloat16 would turn over many a choice.

    Args:
        width: D.
        num_routes: R.
        seed: of the draw; the same seed gives the same matrix on every machine.
        std: of the normal distribution it is drawn from.
        bias: keep a bias per route, zero until `calibrate`.
        orthogonal: rows at right angles, as long as drawn ones are on average. Loads differ less.

    Raises:
        OptionError: more orthogonal rows are asked for than fit D dimensions.
    """

    weight: Tensor
    bias: Tensor | None
    seed: Tensor

    def __init__(
        self, width: int, num_routes: int, *, seed: int = 0, std: float = 0.02, bias: bool = True,
        orthogonal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if orthogonal and num_routes > width:
            raise OptionError(f"{num_routes} rows of {width} numbers cannot be orthogonal: leave orthogonal=False.")
        self.width, self.num_routes = width, num_routes
        self.register_buffer("weight", _drawn(num_routes, width, seed, orthogonal) * std)
        self.register_buffer("bias", torch.zeros(num_routes, device="cpu") if bias else None)
        self.register_buffer("seed", torch.tensor([seed], device="cpu"))

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_items(x, self.width)
        return wide_linear(x, self.weight, self.bias), None

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the bias so that every route has a mean logit of zero over ``x [T, D]``. Mutates; once, before training.

        A mean that differs from zero is what sends most items the same way.

        Raises:
            OptionError: built without a bias, or there are no items.
            RoutingError: the items are of another width.
        """
        check_items(x, self.width)
        if self.bias is None or not len(x):
            raise OptionError("calibration needs bias=True and at least one item.")
        self.bias.copy_(-wide_linear(x, self.weight).mean(0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for every module (``.to()``, ``.bfloat16()``, ...), but what is kept never narrows."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after: Any = self._buffers[name]
            if after.is_floating_point() and after.itemsize < before.itemsize:
                self._buffers[name] = before.to(after.device)
        return self


def _drawn(num_routes: int, width: int, seed: int, orthogonal: bool) -> Tensor:
    """[R, D] of mean square 1. Drawn on the processor, whose generator gives the same everywhere."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(num_routes, width, generator=generator, device="cpu")
    if not orthogonal:
        return drawn
    rows, triangle = torch.linalg.qr(drawn.T)
    return (rows * triangle.diagonal().sign()).T.contiguous() * width**0.5
