"""Experts that are stored and computed in a way of their own, such as factors: how they say so and come back.

A kind is registered by name. What it stores lies on disk as one tensor per expert and part, and coterie.json
keeps the kind's name with its record. The store reads an expert's parts as it reads any expert's bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, UnsupportedError
from coterie.experts.base import Experts
from coterie.experts.encoding import Part
from coterie.experts.shape import FFNShape
from coterie.ops.dispatch import dispatch, group_by_expert
from coterie.registry import Registry
from coterie.routing import Routing

__all__ = ["EXPERT_KINDS", "ExpertKind", "KindExperts", "kind_from_record"]


class ExpertKind(ABC):
    """How the experts of one site are stored, and what one of them computes. Frozen; thread-safe.

    A subclass is final, is registered in `EXPERT_KINDS` under its ``name``, and may have experts that differ.

    Attributes:
        name: in coterie.json.
        shape: of the feed-forward expert each stands for.
        num_experts: E.
        passing_bytes: memory that computing one expert takes beside its parts and its rows.
    """

    name: ClassVar[str]
    passing_bytes: ClassVar[int] = 0
    shape: FFNShape
    num_experts: int

    @abstractmethod
    def parts(self, expert: int) -> dict[str, Part]:
        """Part name -> the tensor that lies on disk for ``expert``, in the order it is computed with."""

    @abstractmethod
    def forward(
        self, x: Tensor, parts: Mapping[str, Tensor], *, watch: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        """One expert: [n, D] -> [n, D] in the dtype of ``x``. Pure; n may be 0. Gradient flows to float parts.

        ``watch`` is told the activations [n, F], what the projection down reads; it changes no bit.
        """

    @abstractmethod
    def as_record(self) -> dict[str, Any]:
        """What `from_record` needs beside the shape: a JSON table."""

    @classmethod
    @abstractmethod
    def from_record(cls, record: Mapping[str, Any], shape: FFNShape, num_experts: int) -> ExpertKind:
        """What `as_record` made.

        Raises:
            OptionError: the record is not such a table.
        """

    def floats(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """float32 weights of the feed-forward expert that one of these stands for, by the names of ``shape``.

        Raises:
            UnsupportedError: it stands for none.
        """
        raise UnsupportedError(f"Experts of the kind {self.name!r} stand for no plain feed-forward experts.")

    def nbytes(self, expert: int) -> int:
        """Of one expert on disk."""
        from coterie.ranges import DTYPE_BITS

        return sum((prod(part.shape) * DTYPE_BITS[part.dtype] + 7) // 8 for part in self.parts(expert).values())

    def parameters(self, expert: int) -> int:
        """Of one expert; by default every number that is stored."""
        return sum(prod(part.shape) for part in self.parts(expert).values())

    def multiplications(self, expert: int) -> int:
        """Products of one row with one expert; by default one for every number of a float or integer matrix."""
        return sum(prod(part.shape) for part in self.parts(expert).values() if len(part.shape) == 2)


EXPERT_KINDS: Registry[type[ExpertKind]] = Registry("expert kind")
"""Name in coterie.json -> class."""


def kind_from_record(record: Mapping[str, Any], shape: FFNShape, num_experts: int) -> ExpertKind:
    """The kind that coterie.json describes: ``{"name": ..., ...}``.

    Raises:
        OptionError: a kind that is not known, or a record it cannot read.
    """
    kind = EXPERT_KINDS.get(str(record.get("name")))
    return kind.from_record(record, shape, num_experts)


class KindExperts(Experts):
    """E experts of a kind with their parts as parameters (floats) and buffers (the rest), one after another.

    Args:
        kind: how they compute.
        tensors: of every expert, part name -> tensor.

    Raises:
        OptionError: not as many experts as the kind has.
    """

    def __init__(self, kind: ExpertKind, tensors: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        if len(tensors) != kind.num_experts:
            raise OptionError(f"{kind.name} has {kind.num_experts} experts, found the tensors of {len(tensors)}.")
        self.kind, self.num_experts, self.shape = kind, kind.num_experts, kind.shape
        self.each = nn.ModuleList(_holder(parts) for parts in tensors)

    def weights_of(self, expert: int) -> dict[str, Tensor]:
        """The parts of one expert, by their names in `ExpertKind.parts`."""
        holder = self.each[expert]
        return {name: getattr(holder, name) for name in self.kind.parts(expert)}

    def named_parts(self) -> Iterator[tuple[int, str, Tensor]]:
        """Every expert's parts: what lies on disk."""
        for expert in range(self.num_experts):
            yield from ((expert, name, tensor) for name, tensor in self.weights_of(expert).items())

    def visit(
        self, experts: Sequence[int], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Each of ``experts`` with its parts for `ExpertKind.forward`, as experts in a store do it."""
        yield from ((expert, self.weights_of(expert)) for expert in experts)

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        sent = dispatch(x, routing)
        places, rows = [], []
        for expert, place in group_by_expert(routing).hit():
            places.append(place)
            rows.append(self.kind.forward(sent[place], self.weights_of(expert)))
        if not rows:
            return torch.zeros_like(sent)
        back = torch.cat(places).argsort()
        return torch.cat(rows).index_select(0, back)

    def extra_repr(self) -> str:
        return f"kind={self.kind.name!r}, num_experts={self.num_experts}"


def _holder(parts: Mapping[str, Tensor]) -> nn.Module:
    holder = nn.Module()
    for name, tensor in parts.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            holder.register_parameter(name, nn.Parameter(tensor))
        else:
            holder.register_buffer(name, tensor)
    return holder
