"""Pure tensor functions: no parameters, no state. Floor 2; every room above may use them.

`select` says who is chosen; `dispatch` carries rows to experts and back. (The function ``dispatch``
is imported from its module, whose name it would hide here.)
"""

from coterie.ops.balance import convert_coefficient, entropy, load_shares, mean_experts, switch_balance, z_loss
from coterie.ops.capacity import best_items, places_per_route, within_capacity
from coterie.ops.cluster import balanced_assignment, balanced_kmeans, balanced_partition, members
from coterie.ops.correction import corrected, route_load
from coterie.ops.dispatch import Groups, combine, combine_reference, group_by_expert
from coterie.ops.draw import fold, gumbel, uniform, word_of
from coterie.ops.partition import DenseSplit, even_channels, split_columns, split_dense, split_rows
from coterie.ops.quantize import dequantize_fp8_blocks, dequantize_mxfp4
from coterie.ops.select import check_groups, check_k, group_limited_top_k, hash_choice, top_k
from coterie.ops.threshold import min_p, top_p

__all__ = [
    "DenseSplit",
    "Groups",
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
    "dequantize_fp8_blocks",
    "dequantize_mxfp4",
    "entropy",
    "even_channels",
    "fold",
    "group_by_expert",
    "group_limited_top_k",
    "gumbel",
    "hash_choice",
    "load_shares",
    "mean_experts",
    "members",
    "min_p",
    "places_per_route",
    "route_load",
    "split_columns",
    "split_dense",
    "split_rows",
    "switch_balance",
    "top_k",
    "top_p",
    "uniform",
    "within_capacity",
    "word_of",
    "z_loss",
]
