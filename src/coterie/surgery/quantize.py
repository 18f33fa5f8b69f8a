"""One layer's experts as integers of 8 or 4 bits, and what each width would miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.experts import Integers, IntegerWidth
from coterie.ops.integers import dequantize, packed_columns, quantize, scale_columns
from coterie.surgery.factorize import DTYPE_NAMES
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.moments import InputMoments, heard

__all__ = ["quantize_layer", "width_bytes", "width_errors"]

Widths = Mapping[str, Sequence[IntegerWidth]]


def width_bytes(rows: int, columns: int, width: IntegerWidth) -> int:
    """Of one matrix on disk, scales included."""
    return rows * (packed_columns(columns, width.bits) + 2 * scale_columns(columns, width.group))


def width_errors(layer: LayerExperts, options: Sequence[IntegerWidth], moments: InputMoments) -> dict[str, Tensor]:
    """Matrix name -> [E, 1 + options] float64: what there is of each expert's matrix, and what each width misses of it.

    Args:
        layer: as `coterie.surgery.read_layer` reads it.
        options: widths to try.
        moments: by which both are weighed, see `InputMoments`.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in _matrices(layer)}
    for expert in range(layer.num_experts):
        heard_by = moments.of(expert)
        for name, each in found.items():
            weight, by = layer.weights[name][expert], heard_by[name]
            missed = [_missed(weight, quantize(weight, *width), width, by) for width in options]
            each.append([heard(weight, by), *missed])
    return {name: torch.tensor(each, dtype=torch.float64) for name, each in found.items()}


def quantize_layer(layer: LayerExperts, widths: Widths, moments: InputMoments) -> NewLayer:
    """``layer`` with every matrix as integers, biases as they were. Lossy.

    Args:
        layer: as `coterie.surgery.read_layer` reads it.
        widths: matrix name -> of each expert.
        moments: by which the error told is weighed.

    Returns:
        the new layer, routes as they were; ``about`` has ``bits`` (a number, with scales) and ``error``, both by matrix
        name: root of the mean over experts of what is missed relative to what there is.

    Raises:
        UnsupportedError: the experts end in a norm.
    """
    if layer.shape.post_norm:
        raise UnsupportedError(f"The experts of layer {layer.site.layer} end in a norm; they cannot be integers.")
    parts = []
    missed = dict.fromkeys(widths, 0.0)
    for expert in range(layer.num_experts):
        heard_by, own = moments.of(expert), {}
        for name, weight in layer.expert(expert).items():
            if name not in widths:
                own[name] = weight.clone()
                continue
            width = widths[name][expert]
            own[f"{name}_q"], own[f"{name}_scale"] = made = quantize(weight, *width)
            there = max(heard(weight, heard_by[name]), 1e-30)
            missed[name] += _missed(weight, made, width, heard_by[name]) / there
        parts.append(own)
    kind = Integers(layer.shape, layer.num_experts, widths, DTYPE_NAMES[layer.site.dtype])
    about: dict[str, Any] = {
        "bits": {name: _mean_bits(each, *_matrices(layer)[name]) for name, each in widths.items()},
        "error": {name: (total / layer.num_experts) ** 0.5 for name, total in missed.items()},
    }
    return NewLayer({}, layer.router, layer.experts_of, about, kind, parts)


def _missed(weight: Tensor, made: tuple[Tensor, Tensor], width: IntegerWidth, moments: Tensor | None) -> float:
    """What the integers miss of ``weight``, squared."""
    return heard(dequantize(*made, weight.shape[1], width.group, torch.float32) - weight.float(), moments)


def _mean_bits(widths: Sequence[IntegerWidth], rows: int, columns: int) -> float:
    return 8 * sum(width_bytes(rows, columns, width) for width in widths) / (len(widths) * rows * columns)


def _matrices(layer: LayerExperts) -> dict[str, tuple[int, int]]:
    return {name: (size[0], size[1]) for name, size in layer.shape.weight_shapes().items() if len(size) == 2}
