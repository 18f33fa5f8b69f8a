"""Bytes from and to the disk: where unfinished work lies, pieces of a file, what the system says in sentences."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from coterie.errors import CheckpointError, OptionError
from coterie.models.tensors import FLOATS, fill, readable
from coterie.ranges import TensorRange
from coterie.surgery.finite import has_nan
from coterie.units import format_bytes

__all__ = ["DiskFullError", "flush_names", "part_of", "pieces", "refuse_existing", "sound_pieces", "told"]

_PIECE = 8 << 20


def part_of(out: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return out.with_name(f"{out.name}.part")


def refuse_existing(out: Path, resume: bool) -> None:
    """Refuse to write over anything.

    Raises:
        OptionError: ``out`` exists, its directory does not, or unfinished work lies there and is not to go on.
    """
    if out.exists():
        raise OptionError(f"{out} exists already. Name another directory, or remove it first: rm -r {out}")
    if not out.parent.is_dir():
        raise OptionError(f"There is no directory {out.parent}. Make it first: mkdir -p {out.parent}")
    if part_of(out).exists() and not resume:
        raise OptionError(
            f"{part_of(out)} holds unfinished work. Go on with it by --resume, or remove it: rm -r {part_of(out)}"
        )


class DiskFullError(CheckpointError):
    """The disk has no room left for what is written."""


@contextmanager
def told(part: Path) -> Iterator[None]:
    """What the system says about writing, as sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(part.parent).free
            raise DiskFullError(
                f"The disk is full: {format_bytes(free)} are left beside {part}. The source is untouched. Make room "
                "and type the command again with --resume, or remove what was begun."
            ) from error
        raise CheckpointError(f"{part} cannot be written: {error}. The source is untouched.") from error


def pieces(part: TensorRange) -> Iterator[memoryview]:
    """The bytes of a tensor; each piece is valid until the next is asked for, in memory that is used again.

    Raises:
        CheckpointError: the file is gone or ends too early.
    """
    flat: Any = torch.empty(min(part.nbytes, _PIECE), dtype=torch.uint8).numpy()
    buffer, left = memoryview(flat), part.nbytes
    with readable(part.path), part.path.open("rb", buffering=0) as file:
        file.seek(part.start)
        while left:
            piece = buffer[: min(left, len(buffer))]
            left -= len(piece)
            fill(piece, file, part.path, then=left)
            yield piece


def sound_pieces(name: str, part: TensorRange) -> Iterator[memoryview]:
    """As `pieces`, looked at for NaN on the way.

    Raises:
        CheckpointError: the tensor ``name`` holds NaN.
    """
    floats = FLOATS.get(part.dtype)
    for piece in pieces(part):
        if floats is not None and has_nan(torch.frombuffer(piece, dtype=floats)):
            raise CheckpointError(
                f"{part.path}: {name!r} holds NaN. Nothing can be made of it: copy or download it again."
            )
        yield piece


def flush_names(directory: Path) -> None:
    """Names of files to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
