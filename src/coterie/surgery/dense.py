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
from coterie.experts.shape import ACTIVATIONS
from coterie.models.checkpoint import Checkpoint, resolve
from coterie.models.checksum import Seal
from coterie.models.compat import DiskNames, read_config, resident_bytes, skeleton, text_config
from coterie.models.compat.gating import activation_of
from coterie.models.families import check_family
from coterie.models.feed_forwards import FFNSite, find_ffns
from coterie.models.layout import sort_tensors
from coterie.models.shards import quantization_of, read_config_json, read_ranges
from coterie.models.tensors import FLOATS
from coterie.surgery.finite import is_finite
from coterie.surgery.orientation import canonical

__all__ = ["DenseCheckpoint", "DenseFFN", "DenseLayer", "open_dense", "read_ffn"]

_GATES, _UPS = ("gate", "w1", "wi_0"), ("up", "w3", "wi_1", "fc1", "fc_in", "c_fc", "fc", "wi", "dense_h_to_4h")
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


@dataclass(frozen=True)
class DenseFFN:
    """Where one feed-forward lies.

    Attributes:
        name: module path, such as "model.layers.0.mlp".
        layer: number of the decoder layer.
        shape: of it, in the canonical orientation.
        disk: as its matrices lie: fused, transposed, or neither.
        names: weight (``gate_up_proj``, ``down_proj_bias``...) -> name on disk.
    """

    name: str
    layer: int
    shape: FFNShape
    disk: FFNShape = field(repr=False)
    names: Mapping[str, str] = field(repr=False)


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
    readers = dense.dense_readers()
    weights = {}
    for weight, name in ffn.names.items():
        weights[weight] = readers[name]()
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
    roles = _roles(site, opened)
    conv = type(block.get_submodule(site.down)).__name__ == "Conv1D"
    bias = getattr(block.get_submodule(site.down), "bias", None) is not None
    fused = "gate_up_proj" in roles
    width = int(text_config(body.config).hidden_size)
    gated, activation = fused or "gate_proj" in roles, _activation(block, opened)
    options: dict[str, Any] = {"gated": gated, "bias": bias, "activation": activation}
    shape = FFNShape(width, site.inner, fused=False, **options)
    disk = FFNShape(width, site.inner, fused=fused, transposed=conv, **options)
    names = {}
    for role, child in roles.items():
        for end, kind in (("", "weight"), ("_bias", "bias")):
            full = f"{site.name}.{child}.{kind}"
            if getattr(block.get_submodule(child), kind, None) is not None:
                names[f"{role}{end}"] = on_disk[full]
    if names.keys() != disk.weight_shapes().keys():
        raise UnsupportedError(
            f"{opened.path}: the feed-forward {site.name} has {sorted(names)}, a known one "
            f"{sorted(disk.weight_shapes())}."
        )
    return DenseFFN(site.name, site.layer, shape, disk, names)


def _roles(site: FFNSite, opened: Checkpoint) -> dict[str, str]:
    """Weight -> child of the block, gate first."""
    if len(site.ups) == 1:
        rows: Any = site.block.get_submodule(site.ups[0])
        out = getattr(rows, "out_features", None) or rows.weight.shape[1]
        return {"up_proj" if out == site.inner else "gate_up_proj": site.ups[0], "down_proj": site.down}
    gates = [child for child in site.ups if _named(child, _GATES)]
    if len(gates) != 1:
        raise UnsupportedError(
            f"{opened.path}: which of {', '.join(site.ups)} in {site.name} is the gate cannot be told from their names."
        )
    up = next(child for child in site.ups if child != gates[0])
    return {"gate_proj": gates[0], "up_proj": up, "down_proj": site.down}


def _named(child: str, words: tuple[str, ...]) -> bool:
    return any(child == word or child.startswith(f"{word}_") for word in words)


def _activation(block: Any, opened: Checkpoint) -> str:
    found = next((getattr(block, name) for name in _ACTIVATIONS if hasattr(block, name)), None)
    if found is None:
        from transformers.activations import ACT2FN

        config = text_config(opened.config)
        names = (getattr(config, each, None) for each in ("hidden_act", "activation_function", "hidden_activation"))
        named = next((name for name in names if name), None)
        if named is None:
            raise UnsupportedError(f"{opened.path}: its feed-forward does not say how it activates.")
        found = ACT2FN[named]
    try:
        return activation_of(found)
    except UnsupportedError:
        line = torch.linspace(-8, 8, 97)
        near = (name for name, ours in ACTIVATIONS.items() if torch.allclose(ours(line), found(line), atol=1e-6))
        if (name := next(near, None)) is None:
            raise
        return name
