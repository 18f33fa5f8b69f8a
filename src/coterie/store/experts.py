"""Experts whose weights live in a store: computed from leases, one expert at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.errors import StoreError
from coterie.experts.base import Experts
from coterie.experts.ffn import expert_forward
from coterie.experts.kinds import ExpertKind
from coterie.experts.quantized import Storage
from coterie.experts.shape import FFNShape
from coterie.ops.dispatch import dispatch, group_by_expert
from coterie.routing import Routing
from coterie.store.base import Store
from coterie.store.blob import Key
from coterie.store.prefetch import Prefetcher


class StoreExperts(Experts):
    """The experts of one site, read on demand. Holds no parameters.

    Resident experts compute while missing ones are read. Rows are written to their place and summed in
    ascending expert id afterwards, so the bits do not depend on which came first. Exact.

    Args:
        store: holds a blob for every ``Key(site, expert)``.
        site: module path.
        num_experts: E.
        shape: of each expert.
        prefetcher: told what this layer needs and what went into it, reads ahead for the next.
        compiled: as `expert_forward` has it.
        storage: how an expert's weights are made of the tensors in its blob; None: they are the weights.
        scratch: where they are made, one expert after another; sites that never compute at once may share it.
        kind: what the experts are, where they are no plain feed-forward experts.
    """

    def __init__(
        self,
        store: Store,
        site: str,
        num_experts: int,
        shape: FFNShape,
        prefetcher: Prefetcher | None = None,
        *,
        compiled: bool = False,
        storage: Storage | None = None,
        scratch: Mapping[str, Tensor] | None = None,
        kind: ExpertKind | None = None,
    ) -> None:
        super().__init__()
        self.store, self.site, self.num_experts, self.shape = store, site, num_experts, shape
        self.prefetcher, self.compiled = prefetcher, compiled
        self.storage = storage if storage is not None and storage.quantised else None
        self.scratch, self.kind = scratch, kind

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise StoreError(
                "Experts in a store cannot be trained: their weights come and go. Run under torch.no_grad(), or "
                "load the model with transformers and attach coterie.experts.FFN to train it."
            )
        sent = dispatch(x, routing)
        rows = sent.new_empty(sent.shape)
        hit = {Key(self.site, expert): positions for expert, positions in group_by_expert(routing).hit()}
        with self.store.acquire(list(hit)) as lease:
            if self.prefetcher is not None:
                self.prefetcher.after(self.site, [key.expert for key in hit], x)
            for key, parts in lease:
                rows[hit[key]] = self._computed(sent[hit[key]], parts)
        return rows

    def _computed(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """[n, D] through one expert."""
        if self.kind is not None:
            return self.kind.forward(x, parts)
        weights = parts if self.storage is None else self.storage.weights(parts, x.dtype, self.scratch)
        return expert_forward(x, weights, self.shape, compiled=self.compiled)

    def visit(
        self, experts: Sequence[int], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Each of ``experts`` with its weights for `expert_forward`, or its parts for ``kind.forward``, one at a time:
        the residents first.

        What was yielded must not be used after the next is asked for. Blocks while experts are read.

        Args:
            experts: ids; each once.
            dtype: of the floats that quantised weights become; only looked at there.
        """
        with self.store.acquire([Key(self.site, expert) for expert in experts]) as lease:
            for key, parts in lease:
                if self.storage is None or self.kind is not None:
                    yield key.expert, parts
                else:
                    yield key.expert, self.storage.weights(parts, dtype or torch.float32, self.scratch)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreExperts:
        """A copy reads the same store: its weights never change, so there is nothing to copy."""
        return StoreExperts(
            self.store, self.site, self.num_experts, self.shape, self.prefetcher, compiled=self.compiled,
            storage=self.storage, scratch=self.scratch, kind=self.kind,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"site={self.site!r}, num_experts={self.num_experts}, {self.shape}"
