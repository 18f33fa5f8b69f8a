"""The experts of one layer, as they lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from coterie.experts import ExpertKind, FFNShape, Storage
from coterie.ranges import TensorRange

# one [E, ...] tensor, or one tensor per expert
Stored = TensorRange | tuple[TensorRange, ...]


@dataclass(frozen=True)
class ExpertSite:
    """Where a layer's experts are and what each looks like.

    Attributes:
        name: module path of the experts, such as "model.layers.0.mlp.experts".
        layer: number of the decoder layer.
        num_experts: E.
        top_k: choices per item; of routers whose number varies, that of the model they were put into.
        storage: how one expert lies on disk.
        stored: part name of ``storage.parts()`` -> where it lies. Where nothing is quantised the parts are the
            weights of `coterie.experts.expert_forward`.
        dtype: of the weights as they are computed with.
        most: experts that memory must be there for per item; 0: ``top_k``.
        names: part name -> name on disk, of the stack or of each expert's tensor.
        routes: R, over which the gate decides; 0: ``num_experts``.
        experts_of: expert of each route, where several routes lead to one expert; None: route r is expert r.
        kind: what the experts are, where they are not plain feed-forward experts; ``each`` then has their parts.
        each: of a kind, part name -> where it lies, for every expert.
    """

    name: str
    layer: int
    num_experts: int
    top_k: int
    storage: Storage = field(repr=False)
    stored: Mapping[str, Stored] = field(repr=False)
    dtype: torch.dtype
    most: int = 0
    names: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict, repr=False)
    routes: int = 0
    experts_of: tuple[int, ...] | None = field(default=None, repr=False)
    kind: ExpertKind | None = field(default=None, repr=False)
    each: tuple[Mapping[str, TensorRange], ...] = field(default=(), repr=False)

    @property
    def num_routes(self) -> int:
        """R: rows of the gate."""
        return self.routes or self.num_experts

    @property
    def room(self) -> int:
        """Experts per item that memory must be there for."""
        return self.most or self.top_k

    @property
    def shape(self) -> FFNShape:
        """Of one expert's weights: ``fused`` says whether gate and up share a tensor on disk."""
        return self.storage.shape

    def parts(self, expert: int) -> dict[str, TensorRange]:
        """Part name -> byte range of one expert's tensors, in the order they are computed with."""
        assert 0 <= expert < self.num_experts, (self.name, expert)
        if self.kind is not None:
            return dict(self.each[expert])
        return {
            name: at.slice(expert) if isinstance(at, TensorRange) else at[expert] for name, at in self.stored.items()
        }

    def nbytes(self, expert: int) -> int:
        """Bytes of one expert on disk."""
        return sum(part.nbytes for part in self.parts(expert).values())

    def computed_bytes(self, experts: int) -> int:
        """Bytes of so many experts (the largest) as they are computed with."""
        if self.kind is None:
            return self.shape.nbytes(self.dtype, experts)
        return sum(sorted((self.kind.nbytes(e) for e in range(self.num_experts)), reverse=True)[:experts])

    def ranges(self) -> Iterator[TensorRange]:
        """Every tensor of the site on disk, once: experts may have one in common."""
        for parts in self.each:
            yield from parts.values()
        for at in self.stored.values():
            yield from (at,) if isinstance(at, TensorRange) else dict.fromkeys(at)
