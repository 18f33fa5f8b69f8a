"""Pure tensor functions: no parameters, no state. Floor 2; every room above may use them.

`select` says who is chosen; `dispatch` carries rows to experts and back. (The function ``dispatch``
is imported from its module, whose name it would hide here.)
"""

from coterie.ops.align import activation_rows, match_rows, neuron_rows, permute_neurons
from coterie.ops.balance import convert_coefficient, entropy, load_shares, mean_experts, switch_balance, z_loss
from coterie.ops.capacity import best_items, places_per_route, within_capacity
from coterie.ops.cluster import balanced_assignment, balanced_kmeans, balanced_partition, members
from coterie.ops.correction import corrected, route_load
from coterie.ops.dispatch import Groups, combine, combine_reference, group_by_expert
from coterie.ops.draw import fold, gumbel, uniform, word_of
from coterie.ops.linkage import average_linkage
from coterie.ops.lowrank import factored_parameters, low_rank, spectrum, stable_rank
from coterie.ops.partition import DenseSplit, even_channels, split_columns, split_dense, split_rows
from coterie.ops.quantize import dequantize_fp8_blocks, dequantize_mxfp4
from coterie.ops.sections import Sections, sections_of
from coterie.ops.select import check_groups, check_k, group_limited_top_k, hash_choice, top_k
from coterie.ops.similarity import Redundancy, cosine_of_rows, logit_similarity, redundancy, weight_similarity
from coterie.ops.structure import keep_units, kept_share
from coterie.ops.threshold import min_p, top_p

__all__ = [
    "DenseSplit",
    "Groups",
    "Redundancy",
    "Sections",
    "activation_rows",
    "average_linkage",
    "balanced_assignment",
    "balanced_kmeans",
    "balanced_partition",
    "best_items",
    "check_groups",
    "check_k",
    "combine",
    "combine_reference",
    "convert_coefficient",
    "corrected",
    "cosine_of_rows",
    "dequantize_fp8_blocks",
    "dequantize_mxfp4",
    "entropy",
    "even_channels",
    "factored_parameters",
    "fold",
    "group_by_expert",
    "group_limited_top_k",
    "gumbel",
    "hash_choice",
    "keep_units",
    "kept_share",
    "load_shares",
    "logit_similarity",
    "low_rank",
    "match_rows",
    "mean_experts",
    "members",
    "min_p",
    "neuron_rows",
    "permute_neurons",
    "places_per_route",
    "redundancy",
    "route_load",
    "sections_of",
    "spectrum",
    "split_columns",
    "split_dense",
    "split_rows",
    "stable_rank",
    "switch_balance",
    "top_k",
    "top_p",
    "uniform",
    "weight_similarity",
    "within_capacity",
    "word_of",
    "z_loss",
]
