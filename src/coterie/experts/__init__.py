"""What computes: experts map rows to rows and do not know who sent them."""

from coterie.experts.base import Experts
from coterie.experts.encoding import Encoding, Part
from coterie.experts.ffn import FFN, expert_forward
from coterie.experts.formats import method_of, split_name
from coterie.experts.quantized import Storage
from coterie.experts.shape import FFNShape
from coterie.experts.shared import SharedExpert

__all__ = [
    "FFN",
    "Encoding",
    "Experts",
    "FFNShape",
    "Part",
    "SharedExpert",
    "Storage",
    "expert_forward",
    "method_of",
    "split_name",
]
