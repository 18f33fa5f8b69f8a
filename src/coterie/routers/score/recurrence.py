"""The cell that all layers of a recurrent router share."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from coterie.errors import OptionError
from coterie.routers.score.products import wide

Cell = Literal["gru", "rnn", "lstm"]
_CELLS: dict[str, type[nn.GRUCell] | type[nn.RNNCell] | type[nn.LSTMCell]] = {
    "gru": nn.GRUCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell,
}  # fmt: skip


class Recurrence(nn.Module):
    """A cell of p numbers, and the projector where all layers share it.

    Args:
        kind: ``gru``, ``rnn`` or ``lstm``.
        state: p.
        shared: D of the shared projector; None where each layer has its own.

    Raises:
        OptionError: an unknown kind, or a state below 1.
    """

    def __init__(self, kind: Cell, state: int, shared: int | None) -> None:
        super().__init__()
        if kind not in get_args(Cell):
            raise OptionError(f"cell={kind!r} is not known; choose one of: {', '.join(get_args(Cell))}.")
        if state < 1:
            raise OptionError(f"state={state} is not allowed: a state has 1 number or more.")
        self.kind, self.state = kind, state
        self.cell = _CELLS[kind](state, state)
        drawn = None if shared is None else torch.empty(state, shared).uniform_(-1, 1) * shared**-0.5
        self.projector = None if drawn is None else nn.Parameter(drawn)

    @property
    def width(self) -> int:
        """Columns of the whole state: an LSTM has two of p each."""
        return self.state * (2 if self.kind == "lstm" else 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """``x [T, p]`` and the state [T, width], both float32 or wider, to the next state."""
        halves = tuple(state.chunk(2, dim=1)) if self.kind == "lstm" else state
        weights = {name: wide(weight).to(x.dtype) for name, weight in self.cell.named_parameters()}
        new = functional_call(self.cell, weights, (x, halves))
        return torch.cat(new, dim=1) if isinstance(new, tuple) else new

    def check_fits(self, kind: Cell, state: int, shared: int | None) -> None:
        """Whether a later layer that asks for these can use this one.

        Raises:
            OptionError: it cannot.
        """
        mine = self.kind, self.state, None if self.projector is None else self.projector.shape[1]
        asked = kind, state, shared
        for name, is_, wanted in zip(("cell", "state", "width of a shared projector"), mine, asked, strict=True):
            if is_ != wanted:
                raise OptionError(f"the router to follow has {name}={is_}, asked is {wanted}: build all layers alike.")
