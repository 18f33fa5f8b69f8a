"""Weights in, weights out: checkpoints with other experts, one layer in memory at a time."""

from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.method import Method
from coterie.surgery.rewrite import Rewritten, rewrite
from coterie.surgery.size import Size, size_of

__all__ = ["LayerExperts", "Method", "NewLayer", "Rewritten", "Size", "read_layer", "rewrite", "size_of"]
