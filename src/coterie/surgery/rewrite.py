"""A mixture-of-experts checkpoint with other experts: read, edited and written one layer at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.compat import DiskNames, skeleton
from coterie.models.shards import read_config_json
from coterie.models.stored import SiteExperts, Stored, write_stored
from coterie.surgery.card import write_card
from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.method import Method
from coterie.surgery.new_config import (
    as_coterie,
    as_native,
    check_gate,
    count_in,
    says_inner,
    with_counts,
    without_quantisation,
)
from coterie.surgery.routing_tensors import router_tensors
from coterie.surgery.size import Size, size_of
from coterie.surgery.target import Target, router_names, targets
from coterie.surgery.verify import check_written
from coterie.surgery.writer import CheckpointWriter, refuse_existing

__all__ = ["CONTAINERS", "Container", "Rewritten", "rewrite"]

Container = Literal["auto", "native", "alias", "coterie"]
CONTAINERS: tuple[Container, ...] = ("auto", "native", "alias", "coterie")
MAX_SHARD = 5_000_000_000
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_OURS = ("config.json", "coterie.json", "README.md", "model.safetensors.index.json")

Say = Callable[[str, int, int], None]
"""(what is done, layers done, layers in all)."""


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
        held: most bytes of one tensor that the writer had in its hands.
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
    floats. Peak memory is one layer, and for the check the dense weights in float32. The source is only read.

    Args:
        checkpoint: opened.
        out: the directory to make; must not exist. Until it is whole, the work lies in ``<out>.part``.
        edit: one layer to another. Called twice per layer, to write and to check: the second time it must say the
            same, so plan what is costly outside of it.
        about: for the model's card.
        container: what the result is to load in: "native" (plain transformers; uniform layers without shared
            routes), "alias" (a map from routes to fewer experts), "coterie" (layers that differ, experts of a kind
            of their own). "auto" takes the first that can say it.
        progress: told (what, layers done, layers).
        resume: go on with unfinished work.
        max_shard: bytes of a file.
        check: compare logits with the edit in memory before the directory is put in place.

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
        layers = _write_layers(checkpoint, edit, writer, container, say)
        found = needed_container(checkpoint, [layer for layer, _ in layers.values()])
        final = found if container == "auto" else container
        _write_rest(checkpoint, writer, {site: layer for site, (layer, _) in layers.items()}, say)
        _finish(checkpoint, writer, final, {site: layer for site, (layer, _) in layers.items()}, about)
        written = open_checkpoint(writer.part)
        difference = None
        if check:
            say("Checking", len(layers), len(layers))
            difference = check_written(checkpoint, edit, writer.part)
        made = Rewritten(
            out, final, size_of(checkpoint), size_of(written),
            {site.layer: layers[site.name][1] for site in checkpoint.sites}, difference, writer.held,
        )  # fmt: skip
        write_card(writer.part, checkpoint, about, made)
        writer.move()
    return made


def _silent(what: str, done: int, of: int) -> None:
    """Nobody listens."""


def _write_layers(
    checkpoint: Checkpoint, edit: Callable[[LayerExperts], NewLayer], writer: CheckpointWriter, container: str, say: Say
) -> dict[str, tuple[SiteExperts, Mapping[str, Any]]]:
    """Experts and gates; site -> what it has become, and what the edit said about it."""
    found: dict[str, tuple[SiteExperts, Mapping[str, Any]]] = {}
    for number, target in enumerate(targets(checkpoint)):
        site = target.site
        say(f"Layer {site.layer}", number, len(checkpoint.sites))
        if (kept := writer.unit(site.name)) is not None:
            found[site.name] = SiteExperts.from_record(kept["experts"], site.name), kept["about"]
            continue
        layer = read_layer(checkpoint, site)
        new = edit(layer).checked(layer)
        check_gate(checkpoint, new.num_routes, site.top_k, site.layer)
        record = SiteExperts(
            new.num_experts, new.num_routes, new.experts_of if new.aliased else None,
            None if new.inner == site.shape.inner and not _own_inner(checkpoint, site.name) else new.inner,
            None if new.kind is None else {"name": new.kind.name, **new.kind.as_record()},
        )  # fmt: skip
        _refuse_early(checkpoint, [*(each for each, _ in found.values()), record], container, site.layer)
        names = _write_layer(checkpoint, target, new, writer)
        about = json.loads(json.dumps(dict(new.about), default=_plain))
        writer.finish_unit(site.name, {"experts": record.as_record(), "about": about}, names)
        found[site.name] = record, about
    return found


def _own_inner(checkpoint: Checkpoint, site: str) -> bool:
    """Whether the inner width of a site is said by coterie.json already, since config.json has another."""
    stored = {} if checkpoint.stored is None else checkpoint.stored.experts
    return site in stored and stored[site].inner is not None


def _write_layer(checkpoint: Checkpoint, target: Target, new: NewLayer, writer: CheckpointWriter) -> list[str]:
    names = []
    for name, tensor in target.tensors(new):
        writer.add(name, tensor)
        names.append(name)
    for role, (name, stored) in router_names(checkpoint, target.site).items():
        before = checkpoint.ranges[name] if name not in checkpoint.encoded else None
        writer.add(name, _gate_tensor(new.router[role], stored, before))
        names.append(name)
    return names


def _gate_tensor(rows: Tensor, stored: tuple[int, ...], before: Any) -> Tensor:
    """Rows of a gate in the type and the shape that the disk had."""
    from coterie.models.tensors import FLOATS

    typed = rows if before is None or before.dtype not in FLOATS else rows.to(FLOATS[before.dtype])
    lead = [1] * (len(stored) - rows.dim()) if len(stored) > rows.dim() else []
    return typed.reshape(*lead, *rows.shape)


def needed_container(checkpoint: Checkpoint, layers: list[SiteExperts]) -> str:
    """The plainest container that can say these layers."""
    if checkpoint.stored is not None and checkpoint.stored.router is not None:
        return "coterie"
    if any(each.kind is not None for each in layers) or len({each.routes for each in layers}) > 1:
        return "coterie"
    if any(each.experts_of is not None for each in layers):
        return "alias"
    widths = {each.inner for each in layers}
    said = len(widths) == 1 and (widths == {None} or says_inner(checkpoint, *widths))
    return "native" if said or not layers else "coterie"


def _refuse_early(checkpoint: Checkpoint, layers: list[SiteExperts], container: str, layer: int) -> None:
    """As soon as it is known that the container that was asked for cannot say what comes."""
    needed = needed_container(checkpoint, layers)
    if needed != "native" and any(_own(checkpoint)):
        raise UnsupportedError(
            f"The family {checkpoint.config.model_type!r} keeps its experts in a way of its own: all its layers must "
            "have as many experts, each with its own row of the gate."
        )
    if container in ("native", "alias") and CONTAINERS.index(needed) > CONTAINERS.index(container):
        raise OptionError(_cannot_say(layers, container, needed, layer))


def _own(checkpoint: Checkpoint) -> list[bool]:
    from coterie.models.find import find_sites

    return [site.own is not None for site in find_sites(skeleton(checkpoint.config, checkpoint.compute_dtype))]


def _cannot_say(layers: list[SiteExperts], container: str, needed: str, layer: int) -> str:
    if needed == "alias":
        reason = f"in layer {layer} several rows of the gate lead to one expert, which config.json has no word for"
        remedy = "Choose the alias container (exact), or drop the rows of merged experts (lossy)"
    elif any(each.kind is not None for each in layers):
        reason = "its experts are stored in a form of their own, which transformers does not compute"
        remedy = "Choose the coterie container"
    else:
        counts = sorted({each.routes for each in layers})
        if len(counts) == 1:
            return (
                f"The {container} container cannot hold this: config.json has no word for the inner width of experts "
                "alone. Choose the coterie container."
            )
        reason = f"config.json has one number of experts for all layers, and they would have {counts}"
        remedy = "Keep as many in every layer (uniform), or choose the coterie container"
    return f"The {container} container cannot hold this: {reason}. {remedy}."


def _write_rest(
    checkpoint: Checkpoint, writer: CheckpointWriter, layers: Mapping[str, SiteExperts], say: Say
) -> None:  # fmt: skip
    """Everything that is neither expert nor gate."""
    say("Copying the rest", len(layers), len(layers))
    gone = {name for target in targets(checkpoint) for name in target.replaced()}
    gone |= {tensor.disk for each in router_tensors(checkpoint).values() for tensor in each if tensor.rows}
    made = {(part.path, part.start) for each in checkpoint.encoded.values() for part in each.parts.values()}
    unknown = _unknown(checkpoint, gone) if _drops_unknown(checkpoint, layers) else set()
    for name, part in checkpoint.ranges.items():
        if name not in gone and name not in unknown and (part.path, part.start) not in made:
            writer.copy(name, part)
    for name, encoded in checkpoint.encoded.items():
        if name not in gone:
            writer.add(name, encoded.read(checkpoint.compute_dtype))


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


def _finish(
    checkpoint: Checkpoint, writer: CheckpointWriter, container: str, layers: Mapping[str, SiteExperts], about: Method
) -> None:
    config = read_config_json(checkpoint.path)
    if checkpoint.quantization is not None:
        config = without_quantisation(config, str(checkpoint.compute_dtype).removeprefix("torch."))
    before, after = count_in(config), max(each.routes for each in layers.values())
    before = checkpoint.sites[0].num_routes if before is None else before
    first = next(iter(layers.values()))
    uniform = len({each.routes for each in layers.values()}) == 1
    inner = None
    if container == "native" and first.inner is not None:
        inner = (checkpoint.sites[0].shape.inner, first.inner)
    config = with_counts(config, before, after if uniform else before, inner)
    stored = None
    if container == "native":
        config = as_native(config)
    else:
        config = as_coterie(config)
        old = checkpoint.stored or Stored(None)
        stored = Stored(old.router, old.curves, old.base, layers, about.as_record())

    def files(part: Path) -> None:
        copy_beside(checkpoint.path, part)
        if stored is not None:
            write_stored(part, stored)

    writer.complete(config, files)


def copy_beside(source: Path, target: Path) -> None:
    """Tokenizer, templates, defaults of generation: whatever lies beside the weights and is no weight itself."""
    for file in sorted(source.iterdir()):
        hidden = file.name.startswith(".")
        if file.is_file() and not hidden and not file.name.endswith(_NOT_COPIED) and file.name not in _OURS:
            shutil.copyfile(file, target / file.name)


def _plain(value: Any) -> Any:
    """Numbers of torch and numpy as Python's, tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    return value.item() if hasattr(value, "item") else str(value)
