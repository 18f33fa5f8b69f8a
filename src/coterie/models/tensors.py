"""Tensors from byte ranges into anonymous memory: nothing stays mapped, nothing stays in the page cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.ranges import TensorRange

# what weights that nobody quantised are stored in
FLOATS: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
# what else a model may have beside its weights: tables of indices, masks
INTEGERS: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
# numbers that mean something only together with scales
_SMALL: Mapping[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
READABLE: Mapping[str, torch.dtype] = {**FLOATS, **INTEGERS, **_SMALL}


def dtype_of(part: TensorRange) -> torch.dtype:
    """torch's name of a type."""
    return READABLE[part.dtype]


def read_tensor(part: TensorRange, *, keep: bool = False) -> Tensor:
    """A tensor, read into fresh memory. Blocks; thread-safe. ``keep`` as of `read_into`.

    Raises:
        CheckpointError: the file is gone or ends too early.
    """
    tensor = torch.empty(part.shape, dtype=dtype_of(part))
    read_into(tensor, part, keep=keep)
    return tensor


def read_into(target: Tensor, part: TensorRange, *, keep: bool = False) -> None:
    """Fill ``target`` (contiguous, on the CPU, of the size of ``part``) from the file. Blocks; thread-safe.

    Args:
        target: written to.
        part: where to read.
        keep: leave what was read in the page cache: it will be read again, or soon be forgotten anyway.

    Raises:
        CheckpointError: the file is gone or ends too early.
    """
    assert target.nbytes == part.nbytes, (target.shape, target.dtype, part)
    flat: Any = target.reshape(-1).view(torch.uint8).numpy()
    with readable(part.path), part.path.open("rb", buffering=0) as file:
        file.seek(part.start)
        fill(memoryview(flat), file, part.path)
        if not keep:
            _drop(file.fileno(), part.start, part.nbytes)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system says about reading ``path``, as a sentence.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def fill(buffer: memoryview, file: Any, path: Path, then: int = 0) -> None:
    """Read from an unbuffered ``file`` on until ``buffer`` is full. Blocks.

    Args:
        path: of the file, for the error.
        then: bytes that are to be read after these, for the error.

    Raises:
        CheckpointError: the file ends before.
    """
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    if (missing := len(buffer) - done) > 0:
        raise CheckpointError(f"{path} is truncated: it ends {missing + then} bytes early. Copy it again.")


def drop_cache(paths: Iterable[Path]) -> None:
    """Ask the system to forget the pages of files, so that a memory budget is honest. Does nothing where it cannot."""
    for path in paths:
        with path.open("rb") as file:
            _drop(file.fileno(), 0, 0)


def _drop(descriptor: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
