"""Pure tensor functions: no parameters, no state. Floor 2; every room above may use them.

`select` says who is chosen; `dispatch` carries rows to experts and back. (The function ``dispatch``
is imported from its module, whose name it would hide here.)
"""

from coterie.ops.balance import convert_coefficient, entropy, mean_experts, load_shares, switch_balance, z_loss
from coterie.ops.dispatch import Groups, combine, combine_reference, group_by_expert
from coterie.ops.partition import DenseSplit, even_channels, split_columns, split_dense, split_rows
from coterie.ops.quantize import dequantize_fp8_blocks, dequantize_mxfp4
from coterie.ops.select import check_groups, check_k, group_limited_top_k, hash_choice, top_k

__all__ = [
    "DenseSplit",
    "Groups",
    "check_groups",
    "check_k",
    "combine",
    "combine_reference",
    "convert_coefficient",
    "dequantize_fp8_blocks",
    "dequantize_mxfp4",
    "entropy",
    "even_channels",
    "group_by_expert",
    "group_limited_top_k",
    "hash_choice",
    "mean_experts",
    "load_shares",
    "split_columns",
    "split_dense",
    "split_rows",
    "switch_balance",
    "top_k",
    "z_loss",
]
