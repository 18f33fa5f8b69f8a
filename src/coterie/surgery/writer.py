"""A checkpoint written tensor by tensor: shards of a given size, a few tensors in memory, whole or not there.

Everything goes into ``<out>.part``, which has no config.json until all of it is there, and is moved into place last.
A shard is complete once it has its final name: its header is written after its data, into room kept for it, the file
is flushed to the disk, and only then renamed. Work that was cut off goes on after the last complete shard.

Writing is done behind: another thread waits for the disk while the next layer is read and computed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.errors import OptionError
from coterie.models.shards import INDEX, SINGLE
from coterie.ranges import TensorRange, read_header
from coterie.surgery.behind import Behind
from coterie.surgery.disk import DiskFullError, flush_names, part_of, refuse_existing, sound_pieces, told
from coterie.surgery.pages import forget
from coterie.surgery.shard import DTYPE_NAMES, OpenShard, bytes_of, room_for

__all__ = ["CheckpointWriter", "part_of", "refuse_existing"]

_MANIFEST = "coterie-part.json"
_WAITING = 128 << 20  # most bytes of tensors that wait for the disk; one that is larger waits alone


class CheckpointWriter:
    """Writes one checkpoint directory. Used by one thread; a context manager.

    `add`, `stream` and `copy` return before the bytes are written, and block only while much waits; what went wrong is
    raised by the next call, at the latest by `complete`. Leaving the ``with`` by an error removes what was written, but
    for an interruption and a full disk, after which the complete shards stay for ``resume``.

    Args:
        out: the directory to make.
        job: what is written, as JSON can hold it; resuming is refused where it differs.
        names: about how many characters of names and how many tensors there will be.
        max_shard: bytes of a file, but for a tensor that is larger alone.
        resume: go on with what an earlier writer left.
    """

    def __init__(
        self, out: Path, job: Mapping[str, Any], *, names: tuple[int, int], max_shard: int, resume: bool = False
    ) -> None:  # fmt: skip
        refuse_existing(out, resume)
        self.out, self.part, self.max_shard = out, part_of(out), max_shard
        self._room = room_for(*names)
        self._shards: list[dict[str, TensorRange]] = []
        self._units: dict[str, Any] = {}
        self._given: set[str] = set()
        self._shard: OpenShard | None = None
        self._piece = 0
        with told(self.part):
            self._begin(dict(job), resume)
        self._kept = {name for shard in self._shards for name in shard}
        self._behind = Behind(_WAITING)

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
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # what waits is little, and saves work
            with suppress(BaseException):
                self._behind.finish()
        self._behind.stop()
        forget()
        if self._shard is not None:
            with suppress(OSError):
                self._shard.drop()
        if kind is None:
            return
        if not (issubclass(kind, KeyboardInterrupt) or issubclass(kind, DiskFullError)) or not self._shards:
            shutil.rmtree(self.part, ignore_errors=True)
        elif issubclass(kind, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"Interrupted. What is whole lies in {self.part}: type the command again with --resume, or remove it."
            ) from None

    @property
    def held(self) -> int:
        """Most bytes of tensors that were in its hands at once."""
        return max(self._behind.held, self._piece)

    def has(self, name: str) -> bool:
        """Whether a complete shard of an earlier writer has this tensor, or this one was given it."""
        return name in self._given or name in self._kept

    def unit(self, name: str) -> Any:
        """What `finish_unit` of an earlier writer was told of ``name``, if all its tensors are whole; else None."""
        found = self._units.get(name)
        return None if found is None or not self._kept.issuperset(found["tensors"]) else found["about"]

    def finish_unit(self, name: str, about: Any, tensors: list[str]) -> None:
        """Remember that ``tensors`` are all of ``name``; what ``about`` says comes back from `unit`."""
        self.after(lambda: self._units.update({name: {"about": about, "tensors": tensors}}))

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, unless it is there; it must not change until it is written.

        Raises:
            DiskFullError: there is no room left.
        """
        held = tensor.detach().contiguous().cpu()
        self._give(name, DTYPE_NAMES[held.dtype], tuple(held.shape), held.nbytes, lambda: [bytes_of(held)], held.nbytes)

    def stream(self, name: str, like: TensorRange, parts: Iterator[Tensor]) -> None:
        """Write a tensor of the type and shape of ``like`` from flat ``parts``, unless it is there.

        Each part must stay as it is until the next is asked for, in another thread.

        Raises:
            DiskFullError: there is no room left.
        """
        self._give(name, like.dtype, like.shape, like.nbytes, lambda: map(bytes_of, parts))

    def copy(self, name: str, part: TensorRange) -> None:
        """Write a tensor's bytes as they are, in pieces, unless it is there.

        Raises:
            CheckpointError: the source ends too early, or holds NaN.
            DiskFullError: there is no room left.
        """
        self._give(name, part.dtype, part.shape, part.nbytes, lambda: sound_pieces(name, part))

    def after(self, work: Callable[[], None]) -> None:
        """Have something else done behind, after what was given before."""
        self._behind.do(work)

    def complete(self, config: Mapping[str, Any], files: Callable[[Path], None]) -> None:
        """Close the last shard, give shards their final names, write the index, config.json and what ``files`` writes.

        The directory is whole from then on, but still in ``part``. Blocks.
        """
        self._behind.do(self._close_shard)
        self._behind.finish()
        with told(self.part):
            self._write_index()
            files(self.part)
            (self.part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def move(self) -> None:
        """Put the directory in its place.

        Raises:
            OptionError: something came there in the meantime.
        """
        if self.out.exists():
            raise OptionError(f"{self.out} came into being in the meantime. What was written is in {self.part}.")
        (self.part / _MANIFEST).unlink()
        flush_names(self.part)
        os.rename(self.part, self.out)

    def _give(
        self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int, parts: Callable[[], Iterable[memoryview]],
        held: int = 0,
    ) -> None:  # fmt: skip
        if not self.has(name):
            self._given.add(name)
            self._behind.do(lambda: self._place(name, dtype, shape, nbytes, parts()), nbytes, held)

    def _place(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int, parts: Iterable[memoryview]) -> None:
        if self._shard is not None and not self._shard.takes(name, nbytes, self.max_shard):
            self._close_shard()
        with told(self.part):
            if self._shard is None:
                self._shard = OpenShard(self.part / "unfinished.shard", self._room)
            self._shard.begin(name, dtype, shape, nbytes)
            for data in parts:
                self._piece = max(self._piece, len(data))
                self._shard.write(data)

    def _close_shard(self) -> None:
        if self._shard is not None:
            with told(self.part):
                self._shards.append(self._shard.close(self._shard_path(len(self._shards) + 1)))
                self._save_manifest()  # what is not in a whole shard is made again anyway
            self._shard = None

    def _write_index(self) -> None:
        count = len(self._shards)
        if count == 1:
            os.rename(self._shard_path(1), self.part / SINGLE)
            return
        finals = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for number, final in enumerate(finals, 1):
            os.rename(self._shard_path(number), self.part / final)
        table = {name: final for final, shard in zip(finals, self._shards, strict=True) for name in shard}
        total = sum(part.nbytes for shard in self._shards for part in shard.values())
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

    def _shard_path(self, number: int) -> Path:
        return self.part / f"shard-{number:05}.safetensors"
