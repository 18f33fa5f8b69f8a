"""The weighted mean of checkpoints of one architecture, a few megabytes of each in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.models.checkpoint import Checkpoint
from coterie.models.shards import read_config_json
from coterie.models.tensors import FLOATS, fill, readable
from coterie.ranges import TensorRange
from coterie.surgery.alike import check_alike
from coterie.surgery.card import write_card
from coterie.surgery.finite import has_nan, is_finite
from coterie.surgery.method import Method
from coterie.surgery.opened import open_any
from coterie.surgery.rewrite import MAX_SHARD, Rewritten, Say, copy_beside
from coterie.surgery.size import size_of
from coterie.surgery.writer import CheckpointWriter, refuse_existing

__all__ = ["average", "shares_of"]

_PIECE = 1 << 20  # numbers of one tensor in memory at once: the sum stays in the processor's cache


def shares_of(weights: Sequence[float], normalise: bool = True) -> tuple[float, ...]:
    """What each model counts: the weights themselves, or divided by their sum.

    Raises:
        OptionError: a weight that is no number, or a sum of 0 to divide by.
    """
    if not all(math.isfinite(weight) for weight in weights):
        raise OptionError(f"Weights are numbers, not {', '.join(f'{weight:g}' for weight in weights)}.")
    if not normalise:
        return tuple(weights)
    total = sum(weights)
    if abs(total) < 1e-12:
        raise OptionError(
            "The weights sum to 0, so they cannot be made to sum to 1. Give others, or take them as they are by "
            "--no-normalise."
        )
    return tuple(weight / total for weight in weights)


def average(
    models: Sequence[Checkpoint],
    shares: Sequence[float],
    out: str | Path,
    *,
    about: Method,
    progress: Say | None = None,
    resume: bool = False,
    max_shard: int = MAX_SHARD,
) -> Rewritten:
    """Write ``sum_i shares[i] x models[i]`` of every tensor to ``out``. Blocks; the sources are only read.

    Added up in float32 (float64 where a tensor is) and stored in the first model's type. Everything that is no number
    to add up, such as tokenizer and tables of integers, is the first model's. Memory is some megabytes per model.

    Args:
        models: of `coterie.surgery.opened.open_any`; of one architecture, dense or with experts.
        shares: what each counts; see `shares_of`.
        out, about, progress, resume, max_shard: as in `coterie.surgery.rewrite`.

    Raises:
        OptionError: ``out`` exists, fewer than two models, or models that are not alike; says in what.
        CheckpointError: a source is damaged or holds NaN, a sum is beyond its type, or the disk is full.
        UnsupportedError: a quantised model.
    """
    out, say = Path(out).expanduser(), progress or (lambda *_: None)
    if len(models) < 2 or len(models) != len(shares):
        raise OptionError(f"A mean is of two models or more, each with a share: {len(models)} and {len(shares)} given.")
    refuse_existing(out, resume)
    names = check_alike(models)
    base = models[0]
    job = {"sources": [model.fingerprint() for model in models], "shares": list(shares), "method": about.as_record()}
    sizes = (sum(map(len, names)), len(names) + 1)
    with CheckpointWriter(out, job, names=sizes, max_shard=max_shard, resume=resume) as writer, _Files() as files:
        for number, name in enumerate(names):
            if not number % 16:
                say("Averaging", number, len(names))
            _write(writer, name, [model.ranges.get(name) for model in models], shares, files)
        writer.complete(read_config_json(base.path), lambda part: _beside(base, part, about))
        made = Rewritten(
            out, _container(base), size_of(base), size_of(open_any(writer.part)),
            held=writer.held,
        )  # fmt: skip
        write_card(writer.part, base, about, made, models[1:])
        writer.move()
    return made


def _write(
    writer: CheckpointWriter, name: str, parts: Sequence[TensorRange | None], shares: Sequence[float], files: _Files
) -> None:
    if writer.has(name):
        return
    first, given = parts[0], [part for part in parts if part is not None]
    assert first is not None
    if first.dtype not in FLOATS or len(given) < len(parts):  # a table of integers, or nothing the model computes with
        writer.copy(name, first)
        return
    wide = torch.float64 if any(part.dtype == "F64" for part in given) else torch.float32
    writer.stream(name, first, _sums(name, given, shares, wide, files))


def _sums(
    name: str, parts: Sequence[TensorRange], shares: Sequence[float], wide: torch.dtype, files: _Files
) -> Iterator[Tensor]:
    """The mean of one tensor, piece by piece, flat."""
    count, dtype = math.prod(parts[0].shape), FLOATS[parts[0].dtype]
    for at in range(0, count, _PIECE):
        size = min(_PIECE, count - at)
        total = files.buffer("sum", wide)[:size].zero_()
        for part, share in zip(parts, shares, strict=True):
            total.add_(files.read(part, at, size), alpha=share)
        typed = total.to(dtype)
        if not is_finite(typed):
            _refuse(name, parts, at, size, files)
        yield typed


def _refuse(name: str, parts: Sequence[TensorRange], at: int, size: int, files: _Files) -> None:
    """Say why a piece is not finite, unless infinity is what all models have there."""
    pieces = [files.read(part, at, size).clone() for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        if has_nan(piece):
            raise CheckpointError(
                f"{part.path}: {name!r} holds NaN. Nothing can be made of it: copy or download it again."
            )
    beyond = [piece.isinf() for piece in pieces]
    if not bool(beyond[0].any()) or not all(torch.equal(beyond[0], each) for each in beyond[1:]):
        raise CheckpointError(
            f"The mean of {name!r} is beyond what {parts[0].dtype} can hold. Give weights that sum to 1."
        )


class _Files:
    """Open shards, and a buffer for each type: reading in one go, into memory that is used again."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, part: TensorRange, at: int, size: int) -> Tensor:
        """[size] numbers from the ``at``-th on. Valid until the next call for the same type.

        Raises:
            CheckpointError: the file is gone or ends too early.
        """
        dtype = FLOATS[part.dtype]
        piece = self.buffer("piece", dtype)[:size]
        flat: Any = piece.view(torch.uint8).numpy()
        with readable(part.path):
            file = self._file(part.path)
            file.seek(part.start + at * dtype.itemsize)
            fill(memoryview(flat), file, part.path)
        return piece

    def buffer(self, use: str, dtype: torch.dtype) -> Tensor:
        """[_PIECE] numbers, the same memory for the same ``use`` and type."""
        if (use, dtype) not in self._buffers:
            self._buffers[use, dtype] = torch.empty(_PIECE, dtype=dtype)
        return self._buffers[use, dtype]

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = self._stack.enter_context(path.open("rb", buffering=0))
        return self._open[path]


def _beside(base: Checkpoint, part: Path, about: Method) -> None:
    stored = None if base.stored is None else replace(base.stored, method=about.as_record())
    copy_beside(base.path, part, stored)


def _container(base: Checkpoint) -> str:
    stored = base.stored
    if stored is None:
        return "native"
    return "alias" if stored.router is None and stored.mixture is None else "coterie"
