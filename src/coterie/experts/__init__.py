"""What computes: experts map rows to rows and do not know who sent them."""

from coterie.experts.aliased import Aliased
from coterie.experts.base import Experts
from coterie.experts.conv import ConvExperts
from coterie.experts.encoding import Encoding, Part
from coterie.experts.factored import Factored, Factors
from coterie.experts.few_rows import Compile, few_rows, has_few, kernel_problem, wants_kernel
from coterie.experts.ffn import FFN, expert_forward
from coterie.experts.formats import method_of, split_name
from coterie.experts.identity import Identity
from coterie.experts.integer import Integers, IntegerWidth
from coterie.experts.kinds import EXPERT_KINDS, ExpertKind, KindExperts, kind_from_record
from coterie.experts.mixed import Mixed, with_identity
from coterie.experts.norm import BatchNormExperts
from coterie.experts.quantized import Storage
from coterie.experts.shape import FFNShape
from coterie.experts.shared import SharedExpert
from coterie.experts.shared_bias import SharedBias

__all__ = [
    "EXPERT_KINDS",
    "FFN",
    "Aliased",
    "BatchNormExperts",
    "Compile",
    "ConvExperts",
    "Encoding",
    "ExpertKind",
    "Experts",
    "FFNShape",
    "Factored",
    "Factors",
    "Identity",
    "IntegerWidth",
    "Integers",
    "KindExperts",
    "Mixed",
    "Part",
    "SharedBias",
    "SharedExpert",
    "Storage",
    "expert_forward",
    "few_rows",
    "has_few",
    "kernel_problem",
    "kind_from_record",
    "method_of",
    "split_name",
    "wants_kernel",
    "with_identity",
]
