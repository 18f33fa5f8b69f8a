"""What a forward allocates, counted on the meta device: every storage from its birth to its death."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _most_nonzero(tensor: Tensor) -> Tensor:
    """Where numbers decide how much there is: all of it."""
    return tensor.new_empty(tensor.numel(), tensor.dim(), dtype=torch.int64)


def _most_indexed(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Masks choose everything."""
    listed: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        listed += _most_nonzero(index).unbind(1) if masks and index is not None else [index]
    return torch.ops.aten.index.Tensor(tensor, listed)


# operations that need numbers, which there are none of here
_WITHOUT_DATA: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.nonzero.default: _most_nonzero,
    torch.ops.aten.index.Tensor: _most_indexed,
    torch.ops.aten._local_scalar_dense.default: lambda tensor: 1,
}


class Meter(TorchDispatchMode):
    """Bytes alive of what was allocated inside the ``with``: now, and at most. One thread."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._attention = _FusedAttention()

    def __enter__(self) -> Meter:
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def restart(self) -> None:
        """Forget the most there was."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = _WITHOUT_DATA.get(func, func)(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._born(leaf.untyped_storage())
        return output

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._died, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _died(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    """Attention as the processor computes it: in blocks, without tables of scores, if queries and values are equally
    wide; else with them, as torch does on the meta device anyway."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            query, _, value = (args[place] if place < len(args) else kwargs[name] for place, name in enumerate(names))
            if query.shape[-1] == value.shape[-1]:
                return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **kwargs)
