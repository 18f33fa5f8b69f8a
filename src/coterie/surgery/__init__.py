"""Weights in, weights out: checkpoints with other experts, one layer in memory at a time."""

from coterie.surgery.dense import DenseCheckpoint, DenseFFN, DenseLayer, open_dense, read_ffn
from coterie.surgery.from_dense import from_dense
from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.method import Method
from coterie.surgery.mixture import FAMILY_NAMES, NewMixture
from coterie.surgery.rewrite import Container, Rewritten, rewrite
from coterie.surgery.size import Size, size_of

__all__ = [
    "FAMILY_NAMES",
    "Container",
    "DenseCheckpoint",
    "DenseFFN",
    "DenseLayer",
    "LayerExperts",
    "Method",
    "NewLayer",
    "NewMixture",
    "Rewritten",
    "Size",
    "from_dense",
    "open_dense",
    "read_ffn",
    "read_layer",
    "rewrite",
    "size_of",
]
