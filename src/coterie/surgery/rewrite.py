"""A mixture-of-experts checkpoint with other experts: read, edited and written one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.compat import DiskNames, skeleton
from coterie.models.stored import SiteExperts
from coterie.surgery.card import write_card
from coterie.surgery.container import CONTAINERS, Container, copy_beside, finish, needed_container
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.new_layers import NewLayers, Say
from coterie.surgery.probe import edited_host
from coterie.surgery.routing_tensors import router_tensors
from coterie.surgery.size import Size, size_of
from coterie.surgery.target import targets
from coterie.surgery.threads import computing
from coterie.surgery.verify import check_written, logits_of, probe_ids
from coterie.surgery.writer import CheckpointWriter, refuse_existing

__all__ = ["CONTAINERS", "MAX_SHARD", "Container", "Rewritten", "Say", "copy_beside", "rewrite"]

MAX_SHARD = 5_000_000_000


@dataclass(frozen=True)
class Rewritten:
    """What was made.

    Attributes:
        path: the directory.
        container: "native" (plain transformers), "alias" (fewer experts than routes) or "coterie".
        before, after: sizes.
        layers: what the edit said of each layer, by the layer's number.
        difference: largest difference between the written model's logits and the edit's in memory, as a share of
            their spread; None where it was not asked for.
        held: most bytes of tensors that the writer had in its hands at once.
    """

    path: Path
    container: str
    before: Size
    after: Size
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    difference: float | None = None
    held: int = 0


def rewrite(
    checkpoint: Checkpoint,
    out: str | Path,
    edit: Callable[[LayerExperts], NewLayer],
    *,
    about: Method,
    container: Container = "auto",
    progress: Say | None = None,
    resume: bool = False,
    max_shard: int = MAX_SHARD,
    check: bool = True,
) -> Rewritten:
    """Write ``checkpoint`` with every layer's experts replaced by what ``edit`` makes of them. Blocks.

    Everything that is no expert and no row of a gate is copied byte for byte; a quantised checkpoint comes out in
    floats. Each layer is read, edited and written when a few tokens come to it on their way through the new model in
    memory; what was written is then opened afresh, read once, and held against that: bytes and logits. Peak memory is
    two layers, and for the check the dense weights. The source is only read.

    Args:
        checkpoint: opened.
        out: the directory to make; must not exist. Until it is whole, the work lies in ``<out>.part``.
        edit: one layer to another. Called once per layer, in the order in which the model computes them; where
            unfinished work is checked, for layers that are written already too, and must then say what it said.
        about: for the model's card.
        container: what the result is to load in: "native" (plain transformers; uniform layers without shared
            routes), "alias" (a map from routes to fewer experts), "coterie" (layers that differ, experts of a kind
            of their own). "auto" takes the first that can say it.
        progress: told (what, layers done, layers).
        resume: go on with unfinished work.
        max_shard: bytes of a file.
        check: compare bytes and logits with the edit in memory before the directory is put in place.

    Raises:
        OptionError: ``out`` exists, a layer that cannot be, or a container that cannot say it; says what can.
        CheckpointError: the source is damaged or holds NaN, the disk is full, or the check failed.
        UnsupportedError: a family whose config cannot say the result.
    """
    out, say = Path(out).expanduser(), progress or _silent
    if container not in CONTAINERS:
        raise OptionError(f"There is no container {container!r}. There are: {', '.join(CONTAINERS)}.")
    refuse_existing(out, resume)
    job = {"source": checkpoint.fingerprint(), "method": about.as_record(), "container": container}
    sizes = (2 * sum(map(len, checkpoint.ranges)), 2 * len(checkpoint.ranges))
    with CheckpointWriter(out, job, names=sizes, max_shard=max_shard, resume=resume) as writer:
        with (
            NewLayers(checkpoint, edit, writer, container, say, mark=check) as layers,
            computing(layers.threads - 1),  # the writer has one of its own
        ):
            expected = logits_of(edited_host(checkpoint, layers.make), probe_ids(checkpoint)) if check else None
            layers.make_rest()
        found = needed_container(checkpoint, [*layers.records.values()])
        final = found if container == "auto" else container
        copied = _write_rest(checkpoint, writer, layers.records, say)
        finish(checkpoint, writer, final, layers.records, about)
        written = open_checkpoint(writer.part)
        difference = None
        if expected is not None:
            say("Checking", len(layers.records), len(layers.records))
            difference = check_written(checkpoint, written, expected, layers.marks, copied)
        made = Rewritten(
            out, final, size_of(checkpoint), size_of(written),
            {site.layer: layers.about[site.name] for site in checkpoint.sites}, difference, writer.held,
        )  # fmt: skip
        write_card(writer.part, checkpoint, about, made)
        writer.move()
    return made


def _silent(what: str, done: int, of: int) -> None:
    """Nobody listens."""


def _write_rest(
    checkpoint: Checkpoint, writer: CheckpointWriter, layers: Mapping[str, SiteExperts], say: Say
) -> list[str]:  # fmt: skip
    """Everything that is neither expert nor gate; names of what was copied as it is."""
    say("Copying the rest", len(layers), len(layers))
    gone = {name for target in targets(checkpoint) for name in target.replaced()}
    gone |= {tensor.disk for each in router_tensors(checkpoint).values() for tensor in each if tensor.rows}
    made = {(part.path, part.start) for each in checkpoint.encoded.values() for part in each.parts.values()}
    unknown = _unknown(checkpoint, gone) if _drops_unknown(checkpoint, layers) else set()
    copied = [
        name for name, part in checkpoint.ranges.items()
        if name not in gone and name not in unknown and (part.path, part.start) not in made
    ]  # fmt: skip
    for name in copied:
        writer.copy(name, checkpoint.ranges[name])
    for name, encoded in checkpoint.encoded.items():
        if name not in gone:
            writer.add(name, encoded.read(checkpoint.compute_dtype))
    return copied


def _drops_unknown(checkpoint: Checkpoint, layers: Mapping[str, SiteExperts]) -> bool:
    """Whether what the model does not know would no longer fit: further layers for guessing ahead have experts too."""
    counts = {site.name: site.num_routes for site in checkpoint.sites}
    return checkpoint.quantization is not None or any(each.experts != counts[site] for site, each in layers.items())


def _unknown(checkpoint: Checkpoint, known: set[str]) -> set[str]:
    names = DiskNames(skeleton(checkpoint.config, checkpoint.compute_dtype))
    beside = tuple(f"{name}." for name in checkpoint.beside)
    rest = checkpoint.ranges.keys() - checkpoint.dense.keys() - known
    shared = {name for site in checkpoint.sites for name in site.names.get("post_norm", ())}
    return {name for name in rest - shared if not names.place(name).name.startswith(beside or ("\0",))}
