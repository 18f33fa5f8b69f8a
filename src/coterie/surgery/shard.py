"""One safetensors file being written: its data first, its header last, into room that was kept for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.models.tensors import READABLE
from coterie.ranges import TensorRange, read_header

__all__ = ["DTYPE_NAMES", "OpenShard", "bytes_of", "room_for"]

DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in READABLE.items()}
"""What safetensors calls a type."""
_HEADER = 1 << 20  # most bytes kept for a shard's header; one that is full begins another shard
_ENTRY = 160  # bytes of a header per tensor, beside its name
_REST = 256


def room_for(characters: int, tensors: int) -> int:
    """Bytes to keep for the header of so many tensors with names of so many characters in all."""
    return min(_HEADER, -(-(characters + _ENTRY * tensors + _REST) // 64) * 64) - 8


class OpenShard:
    """A shard that tensors are appended to. One thread; errors are the system's own.

    Args:
        path: of the unfinished file; written over.
        room: bytes kept for its header.
    """

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.room, self.nbytes = path, room, 0
        self.header: dict[str, Any] = {}
        self._used = _REST
        self._file = path.open("wb", buffering=0)
        self.write(memoryview(b" " * (room + 8)))

    def takes(self, name: str, nbytes: int, most: int) -> bool:
        """Whether a tensor fits beside those that are there, in the file and in its header."""
        return self.nbytes + nbytes <= most and self._used + len(name) + _ENTRY <= self.room

    def begin(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        """Enter a tensor whose ``nbytes`` are written next."""
        entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [self.nbytes, self.nbytes + nbytes]}
        self.header[name] = entry
        self.nbytes += nbytes
        self._used += len(name) + _ENTRY

    def write(self, data: memoryview) -> None:
        """Append."""
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])

    def close(self, final: Path) -> dict[str, TensorRange]:
        """Header, flush to the disk, and only then its name; what a reader finds in it."""
        text = json.dumps({"__metadata__": {"format": "pt"}, **self.header}).encode()
        if len(text) > self.room:
            raise AssertionError(f"a header of {len(text)} bytes does not fit {self.room}")
        self._file.seek(0)
        self.write(memoryview(self.room.to_bytes(8, "little") + text.ljust(self.room)))
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self.path, final)
        return read_header(final)

    def drop(self) -> None:
        """Close and remove the unfinished file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
