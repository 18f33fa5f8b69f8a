"""What computes: experts map rows to rows and do not know who sent them."""

from coterie.experts.base import Experts
from coterie.experts.ffn import FFN, expert_forward
from coterie.experts.shape import FFNShape
from coterie.experts.shared import SharedExpert

__all__ = ["FFN", "Experts", "FFNShape", "SharedExpert", "expert_forward"]
