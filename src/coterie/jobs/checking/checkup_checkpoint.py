"""Is this checkpoint whole, and will it run here? One check per thing that can be broken; headers first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from coterie.errors import CheckpointError
from coterie.jobs.checking.findings import Finding, ok, plural, problem, warning
from coterie.jobs.running.budget import default_memory, planned_budget
from coterie.jobs.running.load import blobs_of, context_of
from coterie.jobs.running.plan import piece_of
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.checksum import Seal
from coterie.models.compat import read_config
from coterie.models.footprint import footprint
from coterie.models.prompts import Prompts
from coterie.models.shards import INDEX, SINGLE, read_config_json, read_json
from coterie.models.tensors import FLOATS, read_tensor
from coterie.ranges import TensorRange, read_header
from coterie.store.machine import machine_memory
from coterie.store.measure import disk_speed
from coterie.store.place import place_of, reads_directly
from coterie.units import format_bytes

DAMAGED = CheckpointError.exit_code
_BUDGET = 2
_SLOW = 100 * 1024**2  # bytes per second: what turning disks and networks give
_PIECE = 16 * 1024**2
_SHA256 = re.compile(r"[0-9a-f]{64}")

Say = Callable[[str], None]


class CheckpointCheckup:
    """The checks of one directory. Each stands for itself, so that one broken thing hides no other."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self._say = path, say

    def checks(self, *, checksum: bool, values: bool) -> Mapping[str, Callable[[], Iterable[Finding]]]:
        """Name -> check, in order."""
        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "config": self.config, "shards": self.shards, "index": self.index, "tensors": self.tensors,
            "tokenizer": self.tokenizer, "disk": self.disk, "disk speed": self.speed, "fits": self.fits,
        }  # fmt: skip
        if checksum:
            checks["checksums"] = self.checksums
        if values:
            checks["values"] = self.values
        return checks

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(path for path in self.path.glob("*.safetensors") if not path.is_dir())

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        """None where it cannot be opened, which `tensors` tells and no other check repeats."""
        try:
            return open_checkpoint(self.path)
        except Exception:
            return None

    def config(self) -> Iterator[Finding]:
        raw = read_config_json(self.path)
        read_config(self.path)
        yield ok("config", f"{raw.get('model_type')}, read by transformers")

    def shards(self) -> Iterator[Finding]:
        """Header and length of every safetensors file."""
        if not self._files:
            yield problem("shards", f"{self.path} has no safetensors files", _AGAIN, DAMAGED)
            return
        bad, tails, total, count = [], [], 0, 0
        for file in self._files:
            try:
                header = read_header(file)
            except CheckpointError as error:
                bad.append(str(error))
                continue
            end = max((part.end for part in header.values()), default=0)
            size = file.stat().st_size
            total, count = total + size, count + len(header)
            if header and size > end:
                tails.append(f"{file.name} has {size - end} bytes behind its last tensor")
        if bad:
            yield problem("shards", f"{len(bad)} of {len(self._files)} damaged. {_some(bad)}", exit_code=DAMAGED)
        elif tails:
            yield warning("shards", _some(tails), "nothing reads them; copy the file again if in doubt")
        else:
            yield ok(
                "shards",
                f"{plural(len(self._files), 'file')}, {count} tensors, {format_bytes(total)}; headers are true",
            )

    def index(self) -> Iterator[Finding]:
        """Whether the index and the shards say the same."""
        if not (self.path / INDEX).is_file():
            yield from self._without_index()
            return
        table = read_json(self.path / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            yield problem("index", f"{INDEX} has no weight_map of file names", _AGAIN, DAMAGED)
            return
        named = set(table.values())
        absent = sorted(file for file in named if not (self.path / file).is_file())
        there = {file.name: _names(file) for file in self._files if file.name in named}
        missing = [name for name, file in table.items() if file in there and name not in there[file]]
        extra = [name for names in there.values() for name in names if name not in table]
        if absent or missing:
            text = [f"shard {file} is missing" for file in absent] + [f"{name} is in no shard" for name in missing]
            yield problem("index", _some(text), _AGAIN, DAMAGED)
        elif extra:
            yield warning("index", f"{len(extra)} tensors of the shards are not in it, such as {extra[0]}", _AGAIN)
        else:
            yield ok("index", f"{len(table)} tensors in {len(named)} files" + self._stray(named))

    def tensors(self) -> Iterator[Finding]:
        """Whether they are those of the model that the config describes."""
        checkpoint = self._checkpoint or open_checkpoint(self.path)
        used = {(part.path, part.start) for part in checkpoint.dense.values()}
        used |= {(part.path, part.start) for site in checkpoint.sites for part in site.ranges()}
        unused = [name for name, part in checkpoint.ranges.items() if (part.path, part.start) not in used]
        text = (
            f"{checkpoint.num_experts} experts in {len(checkpoint.sites)} layers "
            f"({format_bytes(checkpoint.expert_bytes)}), {len(checkpoint.dense)} others; none is missing"
        )
        if unused:
            text += f"; {len(unused)} are not used, such as {unused[0]}"
        yield ok("tensors", text)

    def tokenizer(self) -> Iterator[Finding]:
        try:
            prompts = Prompts.of(self.path, None)
        except CheckpointError as error:
            yield warning("tokenizer", str(error))
            return
        chat = "with a chat template" if prompts.is_chat else "without a chat template"
        yield ok("tokenizer", f"{len(prompts.tokenizer)} tokens, {chat}")

    def disk(self) -> Iterator[Finding]:
        """What the checkpoint lies on, and whether it can be read past the page cache."""
        place = place_of(self.path)
        text = f"{place.kind}, {format_bytes(place.free)} free of {format_bytes(place.size)}"
        if not self._files:
            yield ok("disk", text)
            return
        direct = reads_directly(self._files[0])
        text += ", direct reads" if direct else ", no direct reads: the page cache is dropped behind each"
        if place.is_memory:
            yield warning(
                "disk", f"{text}; it lies in memory", "copy the checkpoint to a disk: here it costs memory twice"
            )
        elif place.is_network:
            yield warning("disk", f"{text}; reads leave this machine", "copy the checkpoint to a local disk")
        else:
            yield ok("disk", text)

    def speed(self) -> Iterator[Finding]:
        if self._checkpoint is None:
            return
        self._say("Measuring the disk")
        blobs = list(blobs_of(self._checkpoint).values())
        speed = disk_speed(blobs)
        cold = sum(site.top_k for site in self._checkpoint.sites) * speed.seconds(blobs[0].slot_bytes)
        text = f"{speed.describe()}: {cold:.3g} s for a token none of whose experts is resident"
        if speed.bandwidth < _SLOW:
            yield warning("disk speed", text, "copy the checkpoint to a faster disk, or give more --memory")
        else:
            yield ok("disk speed", text)

    def fits(self) -> Iterator[Finding]:
        """The floor against the memory there is."""
        if self._checkpoint is None:
            return
        checkpoint, blobs = self._checkpoint, blobs_of(self._checkpoint)
        context = context_of(checkpoint, None)
        needs = footprint(checkpoint, 1, context, chunk=piece_of(checkpoint, context), all_logits=False)
        slot_bytes = max(blob.slot_bytes for blob in blobs.values())
        budget = planned_budget(checkpoint, needs, None, slot_bytes)
        text = (
            f"floor {format_bytes(budget.floor)}, everything resident {format_bytes(budget.everything)}, "
            f"a run without --memory takes {format_bytes(default_memory())} of what is free"
        )
        if budget.floor > machine_memory():
            yield problem("fits", text, "give a shorter --context, or choose a smaller model", _BUDGET)
        elif budget.floor > budget.total:
            yield warning("fits", text, "end other programs, or give a shorter --context")
        else:
            yield ok("fits", text)

    def checksums(self) -> Iterator[Finding]:
        """SHA-256 of every file against what the hub calls it, where that is known."""
        known = 0
        for number, file in enumerate(self._files):
            self._say(f"Reading {file.name} ({number + 1} of {len(self._files)})")
            digest = Seal.of([file], contents=True).digests[file]
            claimed = _claimed(file)
            known += claimed is not None
            if claimed not in (None, digest):
                yield problem("checksums", f"{file.name} is not what the hub sent", "download it again", DAMAGED)
                return
        text = f"{plural(len(self._files), 'file')} read to the end; "
        text += f"{known} known to the hub, and as it says" if known else "nothing to compare with"
        yield ok("checksums", text)

    def values(self) -> Iterator[Finding]:
        """Every weight is a number. Reads everything, a piece at a time."""
        bad, odd, count = [], 0, 0
        for file in self._files:
            self._say(f"Looking at every weight of {file.name}")
            for name, part in read_header(file).items():
                if part.dtype not in FLOATS:
                    odd += 1
                    continue
                count += 1
                if not all(bool(read_tensor(piece).isfinite().all()) for piece in _pieces(part)):
                    bad.append(name)
        skipped = f"; {odd} that are no plain floats were not looked at" if odd else ""
        if bad:
            text = f"{len(bad)} of {count} tensors have NaN or infinity, such as {bad[0]}{skipped}"
            yield problem("values", text, _AGAIN, DAMAGED)
        else:
            yield ok("values", f"{count} tensors, all numbers{skipped}")

    def _without_index(self) -> Iterator[Finding]:
        if (self.path / SINGLE).is_file():
            yield ok("index", "none, and none is needed" + self._stray({SINGLE}))
        elif self._files:
            yield problem("index", f"neither {SINGLE} nor {INDEX}", _AGAIN, DAMAGED)

    def _stray(self, named: set[str]) -> str:
        stray = [file.name for file in self._files if file.name not in named]
        return f"; not read: {_some(stray)}" if stray else ""


_AGAIN = "copy or download it again"


def _names(file: Path) -> set[str]:
    try:
        return set(read_header(file))
    except CheckpointError:  # told by `shards`
        return set()


def _some(texts: list[str]) -> str:
    """The first three."""
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def _claimed(file: Path) -> str | None:
    """The SHA-256 by which the hub knows a file: its name in the cache, or what a download to a directory noted."""
    if _SHA256.fullmatch(name := file.resolve().name):
        return name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    try:
        lines = note.read_text().splitlines()
    except (OSError, ValueError):
        return None
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _pieces(part: TensorRange) -> Iterator[TensorRange]:
    """The tensor's bytes as flat pieces that fit anywhere."""
    size = FLOATS[part.dtype].itemsize
    for start in range(0, part.nbytes, _PIECE):
        length = min(_PIECE, part.nbytes - start)
        yield replace(part, shape=(length // size,), start=part.start + start, nbytes=length)
