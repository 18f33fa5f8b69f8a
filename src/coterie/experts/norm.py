"""Batch normalisation as experts: each with scale, shift and statistics of its own."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.experts.conv import by_sections
from coterie.ops.dispatch import dispatch
from coterie.ops.sections import sections_of
from coterie.routing import Routing

Mode = Literal["per_expert", "shared"]


class BatchNormExperts(Experts):
    """`torch.nn.BatchNorm2d` per expert, fed the rows of its own items alone: [T, C, H, W] -> [S, C, H, W].

    One normalisation for all experts mixes the statistics of what they are meant to tell apart, and costs robust
    accuracy; ``shared`` is there to compare with. In training mode an expert without items keeps its statistics, and
    one that has a single number per channel is normalised by the running ones, which stay as they are. With one
    expert it is `torch.nn.BatchNorm2d`, bit for bit.

    Args:
        channels: C.
        num_experts: E.
        mode: per_expert or shared.
        eps, momentum: as in `torch.nn.BatchNorm2d`.

    Raises:
        OptionError: a number or the mode is not allowed.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, channels: int, num_experts: int, mode: Mode = "per_expert", *, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        if min(channels, num_experts) < 1:
            raise OptionError(f"channels={channels} and num_experts={num_experts} must be 1 or more.")
        if mode not in get_args(Mode):
            raise OptionError(f"mode {mode!r} is unknown; choose one of: {', '.join(get_args(Mode))}.")
        self.channels, self.num_experts, self.mode, self.eps, self.momentum = channels, num_experts, mode, eps, momentum
        norms = num_experts if mode == "per_expert" else 1
        self.weight = nn.Parameter(torch.ones(norms, channels))
        self.bias = nn.Parameter(torch.zeros(norms, channels))
        self.register_buffer("running_mean", torch.zeros(norms, channels))
        self.register_buffer("running_var", torch.ones(norms, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(norms, dtype=torch.int64))

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        """As of `Experts`; in training mode the running statistics change."""
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise OptionError(f"expected items [T, C={self.channels}, H, W], found {tuple(x.shape)}.")
        weights, biases = self.weight.unbind(0), self.bias.unbind(0)
        if self.mode == "shared":
            rows = x if sections_of(routing).each_once else dispatch(x, routing)
            return self._norm(rows, 0, weights[0], biases[0])
        return by_sections(x, routing, lambda e, rows: self._norm(rows, e, weights[e], biases[e]))

    def _norm(self, rows: Tensor, norm: int, weight: Tensor, bias: Tensor) -> Tensor:
        learns = self.training and len(rows) * rows.shape[2] * rows.shape[3] > 1
        if learns:
            self.num_batches_tracked[norm] += 1
        mean, var = self.running_mean[norm], self.running_var[norm]
        return F.batch_norm(rows, mean, var, weight, bias, learns, self.momentum, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, num_experts={self.num_experts}, mode={self.mode!r}"
