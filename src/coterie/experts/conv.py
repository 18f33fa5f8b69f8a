"""Convolutions as experts: the output channels of one wide convolution, in equal shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.ops.dispatch import dispatch
from coterie.ops.sections import sections_of
from coterie.routing import Routing

Backend = Literal["grouped", "masked"]


class ConvExperts(Experts):
    """E convolutions, [T, I, H, W] -> [S, O, H', W'], in one stored weight [E * O, I, k, k].

    Expert e owns output channels e*O to (e+1)*O of the wide convolution (AdvMoE, arXiv 2308.10110). What comes out is
    compact: the O channels of the item's expert.

    Args:
        in_channels, out_channels: I and O of one expert.
        num_experts: E.
        kernel_size, stride, padding: as in `torch.nn.Conv2d`, square.
        bias: one number per output channel, [E * O].
        backend: ``grouped`` (default) sends each expert its own items, a narrow convolution each. ``masked`` runs the
            wide convolution for every item and keeps the item's share: the reference, E times the work.

    Raises:
        OptionError: a number or the backend is not allowed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_experts: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        bias: bool = False,
        backend: Backend = "grouped",
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, num_experts, kernel_size, stride) < 1 or padding < 0:
            raise OptionError("channels, experts, kernel_size and stride must be 1 or more, padding 0 or more.")
        if backend not in get_args(Backend):
            raise OptionError(f"backend {backend!r} is unknown; choose one of: {', '.join(get_args(Backend))}.")
        self.in_channels, self.out_channels, self.num_experts = in_channels, out_channels, num_experts
        self.kernel_size, self.stride, self.padding, self.backend = kernel_size, stride, padding, backend
        self.weight = nn.Parameter(torch.empty(num_experts * out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(num_experts * out_channels)) if bias else None
        with torch.no_grad():  # the fan of one expert, not of all
            for share in self.weight.split(out_channels):
                nn.init.kaiming_normal_(share, mode="fan_out", nonlinearity="relu")

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        """As of `Experts`. Bits of an item may depend on how many items its expert has."""
        self._check(x, routing)
        if self.backend == "masked":
            wide = self._conv(x, self.weight, self.bias)
            apart = wide.view(len(wide), self.num_experts, self.out_channels, *wide.shape[2:])
            return apart[routing.item, routing.expert]
        weights = self.weight.split(self.out_channels)
        biases: Sequence[Tensor | None] = (None,) * self.num_experts
        if self.bias is not None:
            biases = self.bias.split(self.out_channels)
        return by_sections(x, routing, lambda e, rows: self._conv(rows, weights[e], biases[e]))

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def _check(self, x: Tensor, routing: Routing) -> None:
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise OptionError(f"expected items [T, C={self.in_channels}, H, W], found {tuple(x.shape)}.")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, num_experts={self.num_experts}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, backend={self.backend!r}"
        )


def by_sections(x: Tensor, routing: Routing, one: Callable[[int, Tensor], Tensor]) -> Tensor:
    """[S, ...]: each expert's items through ``one(expert, rows)``, in the order of the routing.

    Copies nothing but what it must: items that stand sorted by expert, each with one expert, are taken as they are.
    """
    sections = sections_of(routing)
    grouped = sections.groups is not None
    alone = sections.only
    if alone is not None:  # then the assignments are sorted, too
        return one(alone, x if sections.each_once else dispatch(x, routing))
    rows = x if sections.each_once and not grouped else dispatch(x, routing, sections.groups)
    shares = rows.split(list(sections.counts))
    done = torch.cat([one(expert, share) for expert, share in enumerate(shares) if len(share)])
    return done if sections.groups is None else done.index_select(0, sections.groups.place)
