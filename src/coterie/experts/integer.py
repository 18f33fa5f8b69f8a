"""Feed-forward experts stored as integers of 8 or 4 bits with scales, and computed with in floats. Lossy.

Weights only: rows stay floats. How many bits may differ from expert to expert and from matrix to matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts.buckets import bucketed
from coterie.experts.encoding import Part
from coterie.experts.ffn import placed
from coterie.experts.kinds import EXPERT_KINDS, ExpertKind
from coterie.experts.shape import FFNShape
from coterie.ops.integers import dequantize, packed_columns, scale_columns

__all__ = ["IntegerWidth", "Integers"]

_DTYPES = ("BF16", "F16", "F32", "F64")
_GROUPS = tuple(1 << power for power in range(3, 15))
_FEW = 8  # rows up to which torch's kernel for 8 bits is faster than making floats first
_BLOCK = 64  # that kernel crashes on matrices whose sides are no multiples of its blocks
_PIECE = 1 << 18  # numbers that become floats at a time: they stay in the processor's cache


class IntegerWidth(NamedTuple):
    """How one matrix is stored.

    Attributes:
        bits: 8 or 4.
        group: neighbours in a row that share a scale, a power of two; 0: a whole row.
    """

    bits: int
    group: int = 0


@EXPERT_KINDS.register("integers")
@dataclass(frozen=True)
class Integers(ExpertKind):
    """Experts as integers. Frozen; thread-safe.

    Parts of a matrix, such as ``up_proj`` [m, n]: ``up_proj_q``, int8 [m, n] or uint8 [m, ceil(n / 2)], and
    ``up_proj_scale`` [m, groups] bfloat16, as `coterie.ops.integers.quantize` makes them. Biases and norms lie beside
    them as floats. Rows of bfloat16 that are few go through torch's own kernel for 8 bits; otherwise a piece of the
    matrix at a time becomes floats, so that no expert is ever held whole.

    Attributes:
        shape: gate and up apart, [out, in].
        num_experts: E.
        widths: matrix name -> of each expert.
        dtype: of the floats on disk, as safetensors calls it.

    Raises:
        OptionError: widths of other matrices, for another number of experts, or that there are not.
    """

    name = "integers"
    passing_bytes = 12 * _PIECE  # a piece of a matrix: look-ups, numbers, and their products with scales

    shape: FFNShape
    num_experts: int
    widths: Mapping[str, Sequence[IntegerWidth]]
    dtype: str = "BF16"

    def __post_init__(self) -> None:
        if self.shape.transposed or (self.shape.gated and self.shape.fused):
            raise OptionError("experts as integers have gate and up apart, as [out, in].")
        if self.dtype not in _DTYPES:
            raise OptionError(f"what is not an integer is a float ({', '.join(_DTYPES)}), not {self.dtype!r}.")
        names = [name for name, size in self.shape.weight_shapes().items() if len(size) == 2]
        if set(self.widths) != set(names):
            raise OptionError(f"experts as integers have widths of {', '.join(names)}; found {', '.join(self.widths)}.")
        for name, each in self.widths.items():
            if len(each) != self.num_experts or not all(map(_is_width, each)):
                raise OptionError(f"the widths of {name} are not 8 or 4 bits for {self.num_experts} experts: {each}.")

    def parts(self, expert: int) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for name, size in self.shape.weight_shapes().items():
            if name not in self.widths:
                found[name] = Part(self.dtype, size)
                continue
            (bits, group), (m, n) = self.widths[name][expert], size
            found[f"{name}_q"] = Part("I8" if bits == 8 else "U8", (m, packed_columns(n, bits)))
            found[f"{name}_scale"] = Part("BF16", (m, scale_columns(n, group)))
        return found

    def parameters(self, expert: int) -> int:
        return self.shape.num_parameters()

    def multiplications(self, expert: int) -> int:
        return sum(size[0] * size[1] for size in self.shape.weight_shapes().values() if len(size) == 2)

    def forward(
        self, x: Tensor, parts: Mapping[str, Tensor], *, watch: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        filled = bucketed(x)
        ups = [_linear(filled, parts, name) for name in self.shape.up_names]
        hidden = self.shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)
        if watch is not None:
            watch(hidden[: x.shape[0]])
        return self.shape.finish(_linear(hidden, parts, "down_proj")[: x.shape[0]], parts.get("post_norm"))

    def floats(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: parts[name].float() for name in self.shape.weight_shapes() if name in parts}
        bare = {name: part for name, part in parts.items() if name not in found}
        for name in self.widths:
            columns = self.shape.weight_shapes()[name][1]
            found[name] = _linear(torch.eye(columns), bare, name).t().contiguous()
        return found

    def as_record(self) -> dict[str, Any]:
        widths = {
            name: {"bits": [one.bits for one in each], "group": [one.group for one in each]}
            for name, each in self.widths.items()
        }
        return {"name": self.name, "dtype": self.dtype, "widths": widths}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], shape: FFNShape, num_experts: int) -> Integers:
        try:
            widths = {
                str(name): tuple(IntegerWidth(*one) for one in zip(each["bits"], each["group"], strict=True))
                for name, each in record["widths"].items()
            }
            dtype = record["dtype"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"this is no record of experts as integers: {error}.") from error
        return cls(shape, num_experts, widths, dtype)


def _is_width(width: IntegerWidth) -> bool:
    return width.bits in (4, 8) and (width.group == 0 or width.group in _GROUPS)


def _group(columns: int, scales: int) -> int:
    """The group of which a row of ``columns`` has so many: among powers of two there is one."""
    return 0 if scales == 1 else next(group for group in _GROUPS if -(-columns // group) == scales)


def _linear(x: Tensor, parts: Mapping[str, Tensor], name: str) -> Tensor:
    codes, scales, bias = parts[f"{name}_q"], parts[f"{name}_scale"], parts.get(f"{name}_bias")
    columns = x.shape[1]
    if _has_kernel(x, codes, scales):
        y = torch._weight_int8pack_mm(x, codes, scales[:, 0])
    else:
        group = _group(columns, scales.shape[1])
        step = max(1, _PIECE // columns)
        pieces = zip(codes.split(step), scales.split(step), strict=True)
        y = torch.cat([F.linear(placed(x), dequantize(c, s, columns, group, x.dtype)) for c, s in pieces], dim=1)
    return y if bias is None else y + bias.to(x.dtype)


def _has_kernel(x: Tensor, codes: Tensor, scales: Tensor) -> bool:
    """Whether torch's product of bfloat16 rows and 8-bit rows serves: in other dtypes it is slow, or not there."""
    recorded = torch.is_grad_enabled() and x.requires_grad
    return (
        x.dtype == torch.bfloat16 and x.device.type == "cpu" and 0 < len(x) <= _FEW and not recorded
        and codes.dtype == torch.int8 and scales.shape[1] == 1 and scales.dtype == torch.bfloat16
        and codes.shape[0] % _BLOCK == 0 and codes.shape[1] % _BLOCK == 0
    )  # fmt: skip
