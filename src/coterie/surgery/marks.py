"""What the experts of a layer were when they were made, so that those on disk can be held against it, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.models.site import ExpertSite
from coterie.surgery.forward import by_channels
from coterie.surgery.reading import ExpertReader
from coterie.surgery.shard import bytes_of

__all__ = ["Marks", "experts_on_disk", "marks_of", "marks_of_parts"]

Marks = Sequence[Mapping[str, int]]
"""Of every expert: the checksum (CRC-32) of each weight in the canonical orientation, or of each part of its kind."""


def marks_of(weights: Mapping[str, Tensor], dtype: torch.dtype) -> Marks:
    """Of ``weights`` [E, ...] as they will be written in ``dtype``."""
    return [
        {name: _checksum(stack[expert].to(dtype)) for name, stack in weights.items()}
        for expert in range(len(weights["down_proj"]))
    ]


def marks_of_parts(parts: Sequence[Mapping[str, Tensor]]) -> Marks:
    """Of experts of a kind of their own."""
    return [{name: _checksum(tensor) for name, tensor in each.items()} for each in parts]


def experts_on_disk(
    site: ExpertSite, marks: Marks | None = None
) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:  # fmt: skip
    """The experts of ``site`` read one after another: number, and what computes [n, D] -> [n, D]. Blocks.

    A function is valid until the next expert is read.

    Args:
        site: of an opened checkpoint.
        marks: of what they must be.

    Raises:
        CheckpointError: a file is gone or ends too early, or an expert is another than its marks say; says which.
    """
    for expert, parts, reader in _parts_of(site):
        if site.kind is not None:
            found: Mapping[str, Tensor] = parts
            forward: Any = partial(site.kind.forward, parts=parts)
        else:
            found = reader.weights(parts)
            own = {**found, "post_norm": parts["post_norm"]} if site.shape.post_norm else found
            forward = partial(by_channels, weights=own, shape=reader.shape)
        if marks is not None:
            _compare(site, expert, found, marks)
        yield expert, forward


def _parts_of(site: ExpertSite) -> Iterator[tuple[int, dict[str, Tensor], ExpertReader]]:
    """Each expert as it lies on disk; while one is looked at the next is read, into the memory of the one before."""
    readers = ExpertReader(site), ExpertReader(site)
    with ThreadPoolExecutor(1, thread_name_prefix="coterie-reader") as thread:
        ahead = thread.submit(readers[0].parts, 0)
        for expert in range(site.num_experts):
            parts = ahead.result()
            if expert + 1 < site.num_experts:
                ahead = thread.submit(readers[(expert + 1) % 2].parts, expert + 1)
            yield expert, parts, readers[expert % 2]


def _compare(site: ExpertSite, expert: int, found: Mapping[str, Tensor], marks: Marks) -> None:
    wanted = marks[expert] if expert < len(marks) else {}
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted or _checksum(found[name]) != wanted[name]:
            raise CheckpointError(
                f"What was written is not what the edit made: {name} of expert {expert} in layer {site.layer}. Nothing "
                "was put in place. Is the disk sound?"
            )
    if len(marks) != site.num_experts:
        raise CheckpointError(
            f"Layer {site.layer} was written with {site.num_experts} experts instead of {len(marks)}."
        )


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(bytes_of(tensor.detach().contiguous()))
