"""One expert read, in the one orientation surgery works in; what is read into is used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from coterie.experts import FFNShape
from coterie.models.site import ExpertSite
from coterie.models.tensors import dtype_of, read_into
from coterie.ranges import TensorRange
from coterie.surgery.orientation import canonical, canonical_shape
from coterie.surgery.pages import empty

__all__ = ["ExpertReader", "read_whole"]


def read_whole(part: TensorRange) -> Tensor:
    """A tensor, read into memory of the caller's own; the page cache keeps it. Blocks; thread-safe.

    Raises:
        CheckpointError: the file is gone or ends too early.
    """
    tensor = empty(part.shape, dtype_of(part))
    read_into(tensor, part, keep=True)
    return tensor


class ExpertReader:
    """Reads the experts of one site, one at a time. One thread.

    Args:
        site: of an opened checkpoint.

    Attributes:
        plain: whether what was read last lies on disk as `weights` gives it, so that `into` can read the next.
    """

    def __init__(self, site: ExpertSite) -> None:
        self.site, self.plain = site, False
        self._memory: dict[str, Tensor] = {}

    @property
    def shape(self) -> FFNShape:
        """Of one expert as `weights` gives it."""
        return replace(canonical_shape(self.site.shape), post_norm=self.site.shape.post_norm)

    def parts(self, expert: int) -> dict[str, Tensor]:
        """The tensors of one expert as they lie on disk. Valid until the next is read.

        Raises:
            CheckpointError: a file is gone or ends too early.
        """
        return {name: self._read(name, part) for name, part in self.site.parts(expert).items()}

    def weights(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ``parts`` are as floats: up_proj [F, D], down_proj [D, F] and so on; views where nothing has to move.

        Raises:
            UnsupportedError: experts of a kind that stands for no plain ones.
        """
        site = self.site
        floats = site.storage.weights(parts, site.dtype) if site.kind is None else site.kind.floats(parts)
        found = canonical(floats, site.shape)
        self.plain = found.keys() == parts.keys() and all(_same(found[name], parts[name]) for name in found)
        return found

    def into(self, expert: int, targets: Mapping[str, Tensor]) -> None:
        """Fill ``targets``, one for each weight, from a disk that is `plain`.

        Raises:
            CheckpointError: a file is gone or ends too early.
        """
        for name, part in self.site.parts(expert).items():
            read_into(targets[name], part, keep=True)

    def _read(self, name: str, part: TensorRange) -> Tensor:
        memory = self._memory.get(name)
        if memory is None or memory.shape != part.shape or memory.dtype != dtype_of(part):
            memory = self._memory[name] = empty(part.shape, dtype_of(part))
        read_into(memory, part, keep=True)
        return memory


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
