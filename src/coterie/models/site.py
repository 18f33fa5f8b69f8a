"""The experts of one layer, as they lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from coterie.experts import FFNShape, Storage
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
    """

    name: str
    layer: int
    num_experts: int
    top_k: int
    storage: Storage = field(repr=False)
    stored: Mapping[str, Stored] = field(repr=False)
    dtype: torch.dtype
    most: int = 0

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
        return {
            name: at.slice(expert) if isinstance(at, TensorRange) else at[expert] for name, at in self.stored.items()
        }

    def nbytes(self, expert: int) -> int:
        """Bytes of one expert on disk."""
        return sum(part.nbytes for part in self.parts(expert).values())

    def ranges(self) -> Iterator[TensorRange]:
        """Every tensor of the site on disk, once: experts may have one in common."""
        for at in self.stored.values():
            yield from (at,) if isinstance(at, TensorRange) else dict.fromkeys(at)
