"""A checkpoint written tensor by tensor: shards of a given size, one tensor in memory, whole or not there.

Everything goes into ``<out>.part``, which has no config.json until all of it is there, and is moved into place last.
A shard is complete once it has its final name: its header is written after its data, into room kept for it, the file
is flushed to the disk, and only then renamed. Work that was cut off goes on after the last complete shard.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.models.shards import INDEX, SINGLE
from coterie.ranges import TensorRange, read_header
from coterie.surgery.finite import has_nan
from coterie.units import format_bytes

__all__ = ["CheckpointWriter", "part_of", "refuse_existing"]

_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 16 << 20
_HEADER = 1 << 20  # most bytes kept for a shard's header; one that is full begins another shard
_ENTRY = 160  # bytes of a header per tensor, beside its name
_MANIFEST = "coterie-part.json"


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


class CheckpointWriter:
    """Writes one checkpoint directory. One thread; a context manager.

    Leaving the ``with`` by an error removes what was written, but for an interruption and a full disk, after which the
    complete shards stay for ``resume``.

    Args:
        out: the directory to make.
        job: what is written, as JSON can hold it; resuming is refused where it differs.
        names: about how many characters of names and how many tensors there will be.
        max_shard: bytes of a file, but for a tensor that is larger alone.
        resume: go on with what an earlier writer left.

    Attributes:
        held: most bytes of tensors that were in its hands at once.
    """

    def __init__(
        self, out: Path, job: Mapping[str, Any], *, names: tuple[int, int], max_shard: int, resume: bool = False
    ) -> None:  # fmt: skip
        refuse_existing(out, resume)
        self.out, self.part, self.max_shard = out, part_of(out), max_shard
        characters, count = names
        self._room = min(_HEADER, -(-(characters + _ENTRY * count + 256) // 64) * 64) - 8
        self._shards: list[dict[str, TensorRange]] = []
        self._units: dict[str, Any] = {}
        self._file: IO[bytes] | None = None
        self._header: dict[str, Any] = {}
        self._at, self._used = 0, 256
        self.held = 0
        with _told(self.part):
            self._begin(dict(job), resume)

    def _begin(self, job: dict[str, Any], resume: bool) -> None:
        manifest = self.part / _MANIFEST
        if resume and manifest.exists():
            left = json.loads(manifest.read_text(encoding="utf-8"))
            if left["job"] != job:
                raise OptionError(
                    f"{self.part} holds unfinished work of another kind (another source, edit or option). Repeat the "
                    f"command that began it, or remove it: rm -r {self.part}"
                )
            self._units = left["units"]
            self._unname()
            while (file := self._shard_path(len(self._shards) + 1)).exists():
                self._shards.append(read_header(file))
        else:
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir()
        self._job = job
        self._save_manifest()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            with suppress(OSError):
                self._open_path.unlink(missing_ok=True)
        if kind is None:
            return
        if not (issubclass(kind, KeyboardInterrupt) or issubclass(kind, DiskFullError)) or not self._shards:
            shutil.rmtree(self.part, ignore_errors=True)
        elif issubclass(kind, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"Interrupted. What is whole lies in {self.part}: type the command again with --resume, or remove it."
            ) from None

    @property
    def resumable(self) -> bool:
        """Whether something complete would be left for another try."""
        return bool(self._shards)

    def has(self, name: str) -> bool:
        """Whether a complete shard of an earlier writer has this tensor, or this one was given it."""
        return name in self._header or any(name in shard for shard in self._shards)

    def unit(self, name: str) -> Any:
        """What `finish_unit` was told of ``name``, if all its tensors are in complete shards; else None."""
        kept = self._units.get(name)
        if kept is None or not all(any(each in shard for shard in self._shards) for each in kept["tensors"]):
            return None
        return kept["about"]

    def finish_unit(self, name: str, about: Any, tensors: list[str]) -> None:
        """Remember that ``tensors`` are all of ``name``; what ``about`` says comes back from `unit`."""
        self._units[name] = {"about": about, "tensors": tensors}
        with _told(self.part):
            self._save_manifest()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, unless it is there. Blocks.

        Raises:
            DiskFullError: there is no room left.
        """
        if self.has(name):
            return
        tensor = tensor.detach().contiguous().cpu()
        self.held = max(self.held, tensor.nbytes)
        with self._placed(name, _NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes) as file:
            flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            file.write(memoryview(flat))

    def stream(self, name: str, like: TensorRange, pieces: Iterator[Tensor]) -> None:
        """Write a tensor of the type and shape of ``like`` from flat ``pieces``, unless it is there. Blocks.

        Raises:
            DiskFullError: there is no room left.
        """
        if self.has(name):
            return
        with self._placed(name, like.dtype, like.shape, like.nbytes) as file:
            for piece in pieces:
                self.held = max(self.held, piece.nbytes)
                flat: Any = piece.view(torch.uint8).numpy()
                file.write(memoryview(flat))

    def copy(self, name: str, part: TensorRange) -> None:
        """Write a tensor's bytes as they are, in pieces, unless it is there. Blocks.

        Raises:
            CheckpointError: the source ends too early, or holds NaN.
            DiskFullError: there is no room left.
        """
        if self.has(name):
            return
        with self._placed(name, part.dtype, part.shape, part.nbytes) as file:
            for piece in _pieces(name, part):
                self.held = max(self.held, len(piece))
                file.write(piece)

    def complete(self, config: Mapping[str, Any], files: Callable[[Path], None]) -> None:
        """Close the last shard, give shards their final names, write the index, config.json and what ``files`` writes.

        The directory is whole from then on, but still in ``part``.
        """
        self._close_shard()
        with _told(self.part):
            self._write_index()
            files(self.part)
            text = json.dumps(config, indent=2) + "\n"
            (self.part / "config.json").write_text(text, encoding="utf-8")

    def move(self) -> None:
        """Put the directory in its place.

        Raises:
            OptionError: something came there in the meantime.
        """
        if self.out.exists():
            raise OptionError(f"{self.out} came into being in the meantime. What was written is in {self.part}.")
        (self.part / _MANIFEST).unlink()
        _flush(self.part)
        os.rename(self.part, self.out)

    @contextmanager
    def _placed(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> Iterator[IO[bytes]]:
        if self._file is not None and (
            self._at + nbytes > self.max_shard or self._used + len(name) + _ENTRY > self._room
        ):
            self._close_shard()
        with _told(self.part):
            if self._file is None:
                self._file = self._open_path.open("wb")
                self._file.write(b" " * (self._room + 8))
            yield self._file
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self._at, self._at + nbytes]}
        self._at += nbytes
        self._used += len(name) + _ENTRY

    def _close_shard(self) -> None:
        if self._file is None:
            return
        with _told(self.part):
            text = json.dumps({"__metadata__": {"format": "pt"}, **self._header}).encode()
            if len(text) > self._room:
                raise AssertionError(f"a header of {len(text)} bytes does not fit {self._room}")
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            path = self._shard_path(len(self._shards) + 1)
            os.rename(self._open_path, path)
        self._file, self._at, self._used = None, 0, 256
        self._header = {}
        self._shards.append(read_header(path))

    def _write_index(self) -> None:
        count = len(self._shards)
        if count == 1:
            os.rename(self._shard_path(1), self.part / SINGLE)
            return
        table: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(self._shards, 1):
            final = f"model-{number:05}-of-{count:05}.safetensors"
            os.rename(self._shard_path(number), self.part / final)
            table |= dict.fromkeys(shard, final)
            total += sum(part.nbytes for part in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        (self.part / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _unname(self) -> None:
        """Final names back to those of work in progress: it was cut off while it was checked."""
        (self.part / "config.json").unlink(missing_ok=True)
        (self.part / INDEX).unlink(missing_ok=True)
        final = [self.part / SINGLE] if (self.part / SINGLE).exists() else sorted(self.part.glob("model-*-of-*"))
        for number, file in enumerate(final, 1):
            os.rename(file, self._shard_path(number))

    def _save_manifest(self) -> None:
        scratch = self.part / f"{_MANIFEST}.new"
        scratch.write_text(json.dumps({"job": self._job, "units": self._units}), encoding="utf-8")
        os.replace(scratch, self.part / _MANIFEST)

    @property
    def _open_path(self) -> Path:
        return self.part / "unfinished.shard"

    def _shard_path(self, number: int) -> Path:
        return self.part / f"shard-{number:05}.safetensors"


class DiskFullError(CheckpointError):
    """The disk has no room left for what is written."""


@contextmanager
def _told(part: Path) -> Iterator[None]:
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


def _pieces(name: str, part: TensorRange) -> Iterator[bytes]:
    """The bytes of a tensor, looked at for NaN on the way."""
    floats = _FLOATS.get(part.dtype)
    try:
        with part.path.open("rb") as file:
            file.seek(part.start)
            left = part.nbytes
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise CheckpointError(f"{part.path} is truncated: it ends {left} bytes early. Copy it again.")
                left -= len(piece)
                if floats is not None and has_nan(torch.frombuffer(bytearray(piece), dtype=floats)):
                    raise CheckpointError(
                        f"{part.path}: {name!r} holds NaN. Nothing can be made of it: copy or download it again."
                    )
                yield piece
    except OSError as error:
        raise CheckpointError(f"{part.path} cannot be read: {error}. Copy or download it again.") from error


def _flush(directory: Path) -> None:
    """Names of files to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
