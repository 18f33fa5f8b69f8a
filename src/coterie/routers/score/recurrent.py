"""A router that remembers, layer by layer, how its item was routed before."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import OptionError, RoutingError
from coterie.routers.base import Score
from coterie.routers.score.cosine import Cosine
from coterie.routers.score.linear import LinearScore
from coterie.routers.score.products import check_items, wide
from coterie.routers.score.recurrence import Cell, Recurrence
from coterie.routing import RouteContext

Projector = Literal["per_layer", "shared"]
Carry = Literal["full", "detach", "none"]
Readout = Literal["linear", "cosine"]


class Recurrent(Score):
    """Logits from the state of a recurrent cell that runs over depth (RMoE, arXiv 2408.06793, equations 2 to 5).

    ``h_i = cell(projector @ x_i, h_{i-1})`` and ``logits_i = readout(h_i)``. An item's state passes from
    layer to layer in ``carry`` and ends with the forward: no cache, no other item, no earlier token. The
    cell belongs to all layers: the first router owns it, the later ones, built with ``follow``, use it
    without owning it, so that a model's parameters and state dict have it once. Cell, read-out and carry
    are float32 or wider, the projection has the dtype of the items.

    The carry is one tensor [T, W]: the state (p columns, 2p of an LSTM, none with ``carry="none"``), then the
    logits where there is a residual (R columns).

    Args:
        width: D.
        num_routes: R.
        state: p, the width of the state.
        cell: ``gru``, ``rnn`` (tanh) or ``lstm``, laid out as in torch's cells.
        projector: each layer has its own, or all share the first one's.
        carry: ``full`` (gradients flow through the depth), ``detach`` (the state passes, gradients do not) or
            ``none`` (every layer starts from zeros: the same size without the memory).
        residual: this share of the previous layer's logits is added to the logits.
        detach_residual: without their gradient.
        readout: ``linear``, or ``cosine`` as in `Cosine`.
        follow: the part of an earlier layer, whose cell is used.

    Raises:
        OptionError: an unknown word, a state below 1, or ``follow`` has another cell.
    """

    recurrence: Recurrence

    def __init__(
        self, width: int, num_routes: int, *, state: int = 128, cell: Cell = "gru", projector: Projector = "per_layer",
        carry: Carry = "full", residual: float = 0.0, detach_residual: bool = False, readout: Readout = "linear",
        follow: Recurrent | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_word("projector", projector, get_args(Projector))
        _check_word("carry", carry, get_args(Carry))
        _check_word("readout", readout, get_args(Readout))
        shared = width if projector == "shared" else None
        if follow is None:
            self.recurrence = Recurrence(cell, state, shared)
        else:
            follow.recurrence.check_fits(cell, state, shared)
            # past nn.Module.__setattr__, which would make it a second owner
            self.__dict__["recurrence"] = follow.recurrence
        self.width, self.num_routes, self.state = width, num_routes, state
        self.carry, self.residual, self.detach_residual = carry, residual, detach_residual
        own = torch.empty(state, width).uniform_(-1, 1) * width**-0.5
        self.projector = nn.Parameter(own) if shared is None else None
        self.readout: Score = (
            Cosine(state, num_routes) if readout == "cosine" else LinearScore(state, num_routes, init_std=state**-0.5)
        )
        self._widths = 0 if carry == "none" else self.recurrence.width, num_routes if residual else 0
        self.carry_width = sum(self._widths)
        self.carries = self.carry_width > 0

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_items(x, self.width)
        projector = self.recurrence.projector if self.projector is None else self.projector
        assert projector is not None
        projected = wide(F.linear(x, projector.to(x.dtype)))
        state, logits_before = self._before(projected, ctx)
        with torch.autocast(x.device.type, enabled=False):
            new = self.recurrence(projected, state)
            logits = self.readout(new[:, : self.state], ctx)[0]
        if self.residual:
            logits = logits + self.residual * (logits_before.detach() if self.detach_residual else logits_before)
        return logits, self._after(new, logits)

    def _before(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor]:
        """State and logits of the layer before; zeros in the first layer and where nothing passes."""
        shape = (x.shape[0], self.carry_width)
        if ctx.carry is None or not self.carries:
            state, logits = x.new_zeros(shape).split(self._widths, dim=1)
        elif ctx.carry.shape != shape:
            raise RoutingError(
                f"this router carries [T, W] = {shape} from layer to layer and was given {tuple(ctx.carry.shape)}. "
                "Build all routers of a model alike, each with follow= the one before."
            )
        else:
            state, logits = ctx.carry.to(x.dtype).split(self._widths, dim=1)
        if self.carry == "none":
            return x.new_zeros(x.shape[0], self.recurrence.width), logits
        return state.detach() if self.carry == "detach" else state, logits

    def _after(self, state: Tensor, logits: Tensor) -> Tensor | None:
        if not self.carries:
            return None
        kept = [table for table, columns in zip((state, logits), self._widths, strict=True) if columns]
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)

    def extra_repr(self) -> str:
        owner = "owns" if "recurrence" in self._modules else "follows"
        return f"width={self.width}, num_routes={self.num_routes}, state={self.state}, carry={self.carry!r}, {owner}"


def _check_word(option: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise OptionError(f"{option}={word!r} is not allowed; choose one of: {', '.join(allowed)}.")
