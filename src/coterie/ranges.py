"""Where a tensor's bytes lie in a file, read from the safetensors header alone.

A safetensors file is an 8-byte little-endian header length, a JSON header that maps each tensor's
name to dtype, shape and offsets, and the data. Nothing here maps or reads tensor data; every offset
is checked against the file before anyone believes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointError

# bits per element; F4 packs two values into a byte, F6 four into three
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# safetensors refuses headers beyond 100 MB; a larger number is a file of another kind
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorRange:
    """One tensor's bytes: ``nbytes`` from ``start`` in ``path``, as ``dtype`` (safetensors name) in ``shape``."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.start + self.nbytes

    def slice(self, index: int) -> TensorRange:
        """The range of ``tensor[index]``: a stacked ``[E, ...]`` tensor is E experts side by side."""
        assert 0 <= index < self.shape[0], (self.shape, index)
        step = self.nbytes // self.shape[0]
        return replace(self, shape=self.shape[1:], start=self.start + index * step, nbytes=step)


def read_header(path: Path) -> dict[str, TensorRange]:
    """Name -> range of every tensor in one safetensors file. Reads the header only.

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors file, or its header lies about
            offsets, sizes, shapes or the length of the file.
    """
    header, data_start, file_size = _read_json(path)
    ranges = {
        name: _checked(path, name, entry, data_start, file_size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_overlaps(path, ranges)
    return ranges


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: it holds {size} bytes, its header claims "
                    f"{length}. Copy or download it again."
                )
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no table. Copy or download it again.")
    return header, 8 + length, size


def _checked(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> TensorRange:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise _lie(path, name, "has no valid dtype, shape and data_offsets")
    if dtype not in DTYPE_BITS:
        raise _lie(path, name, f"has dtype {dtype!r}, which safetensors does not know")
    expected = (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8
    if end - begin != expected:
        raise _lie(path, name, f"claims {end - begin} bytes where its dtype and shape need {expected}")
    if data_start + end > file_size:
        raise _lie(path, name, f"ends at byte {data_start + end} of a file of {file_size} bytes (truncated?)")
    return TensorRange(path, dtype, shape, data_start + begin, end - begin)


def _check_overlaps(path: Path, ranges: Mapping[str, TensorRange]) -> None:
    ordered = sorted((r.start, r.end, name) for name, r in ranges.items() if r.nbytes)
    for (_, end, first), (start, _, second) in pairwise(ordered):
        if start < end:
            raise _lie(path, second, f"overlaps tensor {first!r}")


def _lie(path: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: tensor {name!r} {what}. The file is damaged: copy or download it again.")
