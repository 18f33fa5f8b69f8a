"""One expert's bytes: where they lie in files, and what they become in a slot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.ranges import TensorRange

# Direct reads want offset, length and memory aligned to the logical block; 4096 serves every disk we know.
ALIGNMENT = 4096

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


class Key(NamedTuple):
    """Which expert: the module path of its layer and its number there."""

    site: str
    expert: int


@dataclass(frozen=True)
class Segment:
    """One read: the aligned superset of some parts of one file.

    Attributes:
        path: the file.
        start: first byte in the file, a multiple of `ALIGNMENT`.
        length: bytes to ask for, a multiple of `ALIGNMENT`; may pass the end of the file.
        needed: bytes from ``start`` that must arrive; less is a truncated file.
        offset: where the segment begins in the slot.
    """

    path: Path
    start: int
    length: int
    needed: int
    offset: int


@dataclass(frozen=True)
class Blob:
    """The named tensors of one expert, planned as few aligned reads into one slot.

    Parts that lie side by side in a file share one segment; an expert that straddles two files has
    a segment in each. Immutable, and holds no data.

    Attributes:
        parts: weight name -> its range in a file.
        segments: the reads, in file order.
        slot_bytes: bytes of memory the segments fill, a multiple of `ALIGNMENT`.

    Raises:
        UnsupportedError: a part has a dtype that torch cannot hold.
    """

    parts: Mapping[str, TensorRange]
    segments: tuple[Segment, ...] = field(init=False)
    slot_bytes: int = field(init=False)
    _places: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            if part.dtype not in TORCH_DTYPES:
                raise UnsupportedError(f"{part.path}: {name!r} has dtype {part.dtype!r}, which torch cannot hold.")
        segments = _segments(sorted(self.parts.values(), key=lambda part: (str(part.path), part.start)))
        object.__setattr__(self, "segments", segments)
        object.__setattr__(self, "slot_bytes", sum(segment.length for segment in segments))
        places = {name: _place(part, segments) for name, part in self.parts.items()}
        object.__setattr__(self, "_places", places)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors themselves, without the alignment around them."""
        return sum(part.nbytes for part in self.parts.values())

    def tensors(self, buffer: memoryview) -> dict[str, Tensor]:
        """Weight name -> view of ``buffer``, which a tier has filled. Never requires grad.

        A part that lies across its own element size (no writer we know does that) is copied, since
        kernels may not be handed misaligned memory.
        """
        return {name: _tensor(buffer, self._places[name], part) for name, part in self.parts.items()}


def _segments(parts: list[TensorRange]) -> tuple[Segment, ...]:
    """Merge the parts, sorted by file and start, whose aligned supersets touch."""
    segments: list[Segment] = []
    for part in parts:
        start, stop = _floor(part.start), _ceil(part.end)
        last = segments[-1] if segments else None
        if last is not None and last.path == part.path and start <= last.start + last.length:
            length = max(last.length, stop - last.start)
            needed = max(last.needed, part.end - last.start)
            segments[-1] = Segment(last.path, last.start, length, needed, last.offset)
        else:
            offset = 0 if last is None else last.offset + last.length
            segments.append(Segment(part.path, start, stop - start, part.end - start, offset))
    return tuple(segments)


def _place(part: TensorRange, segments: tuple[Segment, ...]) -> int:
    """The part's first byte in the slot."""
    for segment in segments:
        if segment.path == part.path and segment.start <= part.start <= segment.start + segment.length:
            return segment.offset + part.start - segment.start
    raise AssertionError(part)


def _tensor(buffer: memoryview, place: int, part: TensorRange) -> Tensor:
    dtype, shape = TORCH_DTYPES[part.dtype], part.shape
    if part.dtype == "F4":  # torch packs two values into one element
        shape = (*shape[:-1], shape[-1] // 2)
    if not part.nbytes:
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape)
    raw = torch.frombuffer(buffer, dtype=torch.uint8, count=part.nbytes, offset=place)
    if raw.data_ptr() % dtype.itemsize:
        return raw.clone().view(dtype).view(shape)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=place).view(shape)


def _floor(position: int) -> int:
    return position // ALIGNMENT * ALIGNMENT


def _ceil(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
