"""Weights in, weights out: checkpoints with other experts, one layer in memory at a time."""

from coterie.surgery.bits import Choices
from coterie.surgery.channels import Channels, LayerChannels
from coterie.surgery.choose import Cut, choose_channels
from coterie.surgery.dense import DenseCheckpoint, DenseFFN, DenseLayer, open_dense, read_ffn
from coterie.surgery.dense_split import Decision, SplitOptions, decide
from coterie.surgery.edits import merge_layer, prune_layer
from coterie.surgery.factorize import LayerFactors, factorize_layer
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.from_dense import from_dense
from coterie.surgery.grouping import Grouping
from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.masked import masked
from coterie.surgery.merge_plan import MERGES, MergeOptions, plan_merge
from coterie.surgery.method import Method
from coterie.surgery.mixture import FAMILY_NAMES
from coterie.surgery.moments import InputMoments
from coterie.surgery.new_mixture import NewMixture
from coterie.surgery.prune_plan import PRUNES, PruneOptions, plan_prune
from coterie.surgery.quantize import quantize_layer
from coterie.surgery.ranks import MatrixSpectrum, allocate_ranks
from coterie.surgery.rewrite import Container, Rewritten, rewrite
from coterie.surgery.router_start import ROUTER_STARTS, first_rows
from coterie.surgery.size import Size, size_of
from coterie.surgery.slice_dense import write_slice
from coterie.surgery.split import SplitLayer, split_layer
from coterie.surgery.student import factorize_model, pack_model
from coterie.surgery.upcycle import added_row, copies, prompt_rows, side_by_side
from coterie.surgery.ways import WAYS

__all__ = [
    "FAMILY_NAMES",
    "MERGES",
    "PRUNES",
    "ROUTER_STARTS",
    "WAYS",
    "Channels",
    "Choices",
    "Container",
    "Cut",
    "Decision",
    "DenseCheckpoint",
    "DenseFFN",
    "DenseLayer",
    "FeedForward",
    "Grouping",
    "InputMoments",
    "LayerChannels",
    "LayerExperts",
    "LayerFactors",
    "MatrixSpectrum",
    "MergeOptions",
    "Method",
    "NewLayer",
    "NewMixture",
    "PruneOptions",
    "Rewritten",
    "Size",
    "SplitLayer",
    "SplitOptions",
    "added_row",
    "allocate_ranks",
    "choose_channels",
    "copies",
    "decide",
    "factorize_layer",
    "factorize_model",
    "first_rows",
    "from_dense",
    "masked",
    "merge_layer",
    "open_dense",
    "pack_model",
    "plan_merge",
    "plan_prune",
    "prompt_rows",
    "prune_layer",
    "quantize_layer",
    "read_ffn",
    "read_layer",
    "rewrite",
    "side_by_side",
    "size_of",
    "split_layer",
    "write_slice",
]
