"""A dense decoder opened for surgery: where its feed-forwards lie, and one of them read at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import FFNShape, method_of
from coterie.models.checkpoint import Checkpoint, resolve
from coterie.models.checksum import Seal
from coterie.models.compat import DiskNames, read_config, resident_bytes, skeleton, text_config
from coterie.models.families import check_family
from coterie.models.feed_forwards import FFNSite, find_ffns
from coterie.models.layout import sort_tensors
from coterie.models.shards import quantization_of, read_config_json, read_ranges
from coterie.models.tensors import FLOATS
from coterie.surgery.finite import is_finite
from coterie.surgery.form import form_of
from coterie.surgery.orientation import canonical
from coterie.surgery.reading import read_whole

__all__ = ["DenseCheckpoint", "DenseFFN", "DenseLayer", "open_dense", "read_ffn"]


@dataclass(frozen=True)
class DenseFFN:
    """Where one feed-forward lies.

    Attributes:
        name: module path, such as "model.layers.0.mlp".
        layer: number of the decoder layer.
        shape: of it, in the canonical orientation.
        disk: as its matrices lie: fused, transposed, or neither.
        names: weight (``gate_up_proj``, ``down_proj_bias``...) -> name on disk.
        loose: where its parts lie in the decoder layer ``name`` beside others (OPT), the children that go up, activate
            and go down; else empty.
    """

    name: str
    layer: int
    shape: FFNShape
    disk: FFNShape = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    loose: tuple[str, ...] = ()

    @property
    def block(self) -> str:
        """Path of the module whose place a mixture takes."""
        return f"{self.name}.{self.loose[0]}" if self.loose else self.name

    @property
    def empty(self) -> tuple[str, ...]:
        """Paths of modules that hand on what they are given once a mixture is there."""
        return tuple(f"{self.name}.{child}" for child in self.loose[1:])

    @property
    def held(self) -> tuple[str, ...]:
        """Paths of the modules that hold the feed-forward's weights and nothing else."""
        return tuple(f"{self.name}.{child}" for child in (self.loose[0], self.loose[2])) if self.loose else (self.name,)


@dataclass(frozen=True, eq=False)
class DenseCheckpoint(Checkpoint):
    """A dense model on disk; ``sites`` is empty.

    Attributes:
        ffns: its feed-forwards, in order.
    """

    ffns: tuple[DenseFFN, ...] = ()


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """One feed-forward, read.

    Attributes:
        ffn: where it lies.
        weights: up_proj [F, D], down_proj [D, F], gate_proj [F, D] where it is gated; up_proj_bias and gate_proj_bias
            [F], down_proj_bias [D] where it has biases. In the checkpoint's dtype.
        shape: of it; ``shape.hidden(up, gate)`` is its activation.
    """

    ffn: DenseFFN
    weights: Mapping[str, Tensor]

    @property
    def shape(self) -> FFNShape:
        """Of the feed-forward."""
        return self.ffn.shape


def open_dense(model: str | Path, revision: str | None = None, *, any_form: bool = False) -> DenseCheckpoint:
    """Open a dense checkpoint: a directory, or a name on the Hugging Face hub. Headers only.

    Args:
        any_form: with feed-forwards of no known form too; ``ffns`` is empty then.

    Raises:
        CheckpointError: missing, not a checkpoint, incomplete, damaged or contradicting itself.
        UnsupportedError: it has experts already, or its feed-forwards are of no form that is known.
    """
    path = resolve(model, revision)
    raw = read_config_json(path)
    check_family(raw, str(path))
    quantization = quantization_of(raw)
    method_of(quantization, str(path))
    ranges, config = read_ranges(path), read_config(path)
    first = next((FLOATS[part.dtype] for part in ranges.values() if part.dtype in FLOATS), torch.float32)
    compute = config.dtype or text_config(config).dtype or first
    body = skeleton(config, compute)
    layout = sort_tensors(body, ranges, str(path), quantization)
    if layout.sites:
        raise UnsupportedError(
            f"{path} has experts already ({config.model_type}). Give a dense model, or change its experts by coterie "
            "merge, prune or compress."
        )
    seal = Seal.of([path / "config.json", *sorted({part.path for part in ranges.values()})], contents=False)
    opened = Checkpoint(
        path, config, ranges, (), layout.dense, layout.encoded, layout.beside, quantization, compute,
        resident_bytes(body, layout.beside), seal,
    )  # fmt: skip
    try:
        ffns = _ffns(body, opened)
    except UnsupportedError:
        if not any_form:
            raise
        ffns = ()
    return DenseCheckpoint(**{name: getattr(opened, name) for name in Checkpoint.__dataclass_fields__}, ffns=ffns)


def read_ffn(dense: DenseCheckpoint, ffn: DenseFFN) -> DenseLayer:
    """Read one feed-forward into memory of its own. Blocks; thread-safe.

    Raises:
        CheckpointError: a file is gone or truncated, or a tensor holds NaN or infinity; says which.
    """
    weights = {}
    for weight, name in ffn.names.items():
        encoded = dense.encoded.get(name)
        weights[weight] = encoded.read() if encoded is not None else read_whole(dense.dense[name])
        if not is_finite(weights[weight]):
            raise CheckpointError(
                f"{dense.path}: {name!r} holds NaN or infinity. Nothing can be made of it: copy or download it again."
            )
    made = canonical(weights, ffn.disk)
    return DenseLayer(ffn, {name: weight.contiguous() for name, weight in made.items()})


def _ffns(body: Any, opened: Checkpoint) -> tuple[DenseFFN, ...]:
    names, state = DiskNames(body), body.state_dict()
    on_disk: dict[str, str] = {}
    for name in opened.dense_readers():
        on_disk |= dict.fromkeys((each for each in names.place(name).fills if each in state), name)
    beside = tuple(f"{name}." for name in opened.beside)
    found = [site for site in find_ffns(body) if not site.name.startswith(beside or ("\0",))]
    if not found:
        raise UnsupportedError(
            f"{opened.path} has no feed-forward of a known form ({opened.config.model_type}): two or three linear "
            "maps, up and down again."
        )
    return tuple(_ffn(body, opened, site, on_disk) for site in found)


def _ffn(body: Any, opened: Checkpoint, site: FFNSite, on_disk: Mapping[str, str]) -> DenseFFN:
    block: Any = site.block
    form = form_of(site, str(opened.path))
    width = int(text_config(body.config).hidden_size)
    names = {}
    for role, child in form.roles.items():
        for end, kind in (("", "weight"), ("_bias", "bias")):
            if getattr(block.get_submodule(child), kind, None) is not None:
                names[f"{role}{end}"] = on_disk[f"{site.name}.{child}.{kind}"]
    if len(set(names.values())) < len(names):  # one tensor that transformers takes apart when it loads
        raise UnsupportedError(
            f"{opened.path} stores several weights of {site.name} in one tensor, a layout that Coterie does not read "
            "yet. Load and save the checkpoint with transformers, save_original_format=False."
        )
    loose = (form.roles["up_proj"], form.between, form.roles["down_proj"]) if site.loose else ()
    disk = form.shape(width, site.inner, fused=form.fused, transposed=form.turned)
    return DenseFFN(site.name, site.layer, form.shape(width, site.inner), disk, names, loose)
