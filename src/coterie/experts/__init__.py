"""What computes: experts map rows to rows and do not know who sent them."""

from coterie.experts.base import Experts
from coterie.experts.encoding import Encoding, Part
from coterie.experts.few_rows import Compile, few_rows, has_few, kernel_problem, wants_kernel
from coterie.experts.ffn import FFN, expert_forward
from coterie.experts.formats import method_of, split_name
from coterie.experts.quantized import Storage
from coterie.experts.shape import FFNShape
from coterie.experts.shared import SharedExpert

__all__ = [
    "FFN",
    "Compile",
    "Encoding",
    "Experts",
    "FFNShape",
    "Part",
    "SharedExpert",
    "Storage",
    "expert_forward",
    "few_rows",
    "has_few",
    "kernel_problem",
    "method_of",
    "split_name",
    "wants_kernel",
]
