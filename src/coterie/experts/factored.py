"""Feed-forward experts stored and computed as factors: y = U (V x) + S x + b, with a few rows or columns of S.

Ranks and what is kept of S may differ from expert to expert and from matrix to matrix. Lossy against the experts they
were made of; exact where the rank is full or all of S is kept (MC-SMoE, arXiv 2310.01334, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
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
from coterie.ops.lowrank import factored_parameters

__all__ = ["Factored", "Factors"]

_DTYPES = ("BF16", "F16", "F32", "F64")
_UNITS = ("row", "col")


class Factors(NamedTuple):
    """How one matrix [m, n] is made up.

    Attributes:
        rank: of the product U V; 0: there is none.
        kept: rows or columns of S; all of them need no list of which. With rank 0 that is the matrix itself.
        unit: "row" or "col".
    """

    rank: int
    kept: int = 0
    unit: str = "row"

    def whole(self, m: int, n: int) -> bool:
        """Whether all of S is there."""
        return self.kept == (m if self.unit == "row" else n)

    def numbers(self, m: int, n: int) -> int:
        """Of U, V and what is kept of S, without the list of which."""
        return factored_parameters(m, n, self.rank, self.kept, self.unit)


@EXPERT_KINDS.register("factored")
@dataclass(frozen=True)
class Factored(ExpertKind):
    """Experts as factors. Frozen; thread-safe.

    Parts of a matrix, such as ``up_proj`` [m, n]: ``up_proj_u`` [m, r], ``up_proj_v`` [r, n], ``up_proj_s`` [kept, n]
    (or [m, kept]) and ``up_proj_at`` [kept], int32 and ascending, which rows (or columns) those are. Biases and norms
    lie beside them.

    Attributes:
        shape: gate and up apart, [out, in].
        num_experts: E.
        factors: matrix name -> of each expert.
        dtype: of the floats on disk, as safetensors calls it.

    Raises:
        OptionError: factors of other matrices, or for another number of experts, or that do not fit the shape.
    """

    name = "factored"

    shape: FFNShape
    num_experts: int
    factors: Mapping[str, Sequence[Factors]]
    dtype: str = "BF16"

    def __post_init__(self) -> None:
        if self.shape.transposed or (self.shape.gated and self.shape.fused):
            raise OptionError("factored experts have gate and up apart, as [out, in].")
        if self.dtype not in _DTYPES:
            raise OptionError(f"factored experts are floats ({', '.join(_DTYPES)}), not {self.dtype!r}.")
        sizes = _matrices(self.shape)
        if self.factors.keys() != sizes.keys():
            raise OptionError(f"factored experts have factors of {', '.join(sizes)}; found {', '.join(self.factors)}.")
        for name, each in self.factors.items():
            if len(each) != self.num_experts or not all(_fits(factors, *sizes[name]) for factors in each):
                raise OptionError(
                    f"the factors of {name} do not fit {self.num_experts} matrices {list(sizes[name])}: {list(each)}."
                )

    def parts(self, expert: int) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for name, size in self.shape.weight_shapes().items():
            if name in self.factors:
                found |= self._matrix_parts(name, expert, *size)
            else:
                found[name] = Part(self.dtype, size)
        return found

    def _matrix_parts(self, name: str, expert: int, m: int, n: int) -> dict[str, Part]:
        factors = self.factors[name][expert]
        found: dict[str, tuple[int, ...]] = {}
        if factors.rank:
            found |= {f"{name}_u": (m, factors.rank), f"{name}_v": (factors.rank, n)}
        if factors.kept:
            found[f"{name}_s"] = (factors.kept, n) if factors.unit == "row" else (m, factors.kept)
        parts = {each: Part(self.dtype, size) for each, size in found.items()}
        if factors.kept and not factors.whole(m, n):
            parts[f"{name}_at"] = Part("I32", (factors.kept,))
        return parts

    def parameters(self, expert: int) -> int:
        return sum(prod(part.shape) for part in self.parts(expert).values() if part.dtype == self.dtype)

    def forward(
        self, x: Tensor, parts: Mapping[str, Tensor], *, watch: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        filled = bucketed(x)
        ups = [self._linear(filled, parts, name) for name in self.shape.up_names]
        hidden = self.shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)
        if watch is not None:
            watch(hidden[: x.shape[0]])
        return self.shape.finish(self._linear(hidden, parts, "down_proj")[: x.shape[0]], parts.get("post_norm"))

    def floats(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: parts[name].float() for name in self.shape.weight_shapes() if name in parts}
        bare = {name: part for name, part in parts.items() if name not in found}
        for name, (_, columns) in _matrices(self.shape).items():
            found[name] = self._linear(torch.eye(columns), bare, name).t().contiguous()
        return found

    def _linear(self, x: Tensor, parts: Mapping[str, Tensor], name: str) -> Tensor:
        bias = parts.get(f"{name}_bias")
        bias = None if bias is None else bias.to(x.dtype)
        if f"{name}_u" in parts:
            inner = F.linear(placed(x), _cast(parts[f"{name}_v"], x))
            y = F.linear(inner, _cast(parts[f"{name}_u"], x), bias)
        else:
            y = x.new_zeros(x.shape[0], _matrices(self.shape)[name][0])
            y = y if bias is None else y + bias
        if f"{name}_s" not in parts:
            return y
        kept, at = _cast(parts[f"{name}_s"], x), parts.get(f"{name}_at")
        if at is None:
            return y + F.linear(placed(x), kept)
        if kept.shape[0] == at.shape[0] and kept.shape[1] == x.shape[1]:
            return y.index_add(1, at, F.linear(placed(x), kept))
        return y + F.linear(x.index_select(1, at), kept)

    def as_record(self) -> dict[str, Any]:
        factors = {
            name: {
                "rank": [one.rank for one in each], "kept": [one.kept for one in each],
                "unit": [one.unit for one in each],
            }
            for name, each in self.factors.items()
        }  # fmt: skip
        return {"name": self.name, "dtype": self.dtype, "factors": factors}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], shape: FFNShape, num_experts: int) -> Factored:
        try:
            factors = {
                str(name): tuple(Factors(*one) for one in zip(each["rank"], each["kept"], each["unit"], strict=True))
                for name, each in record["factors"].items()
            }
            dtype = record["dtype"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"this is no record of factored experts: {error}.") from error
        return cls(shape, num_experts, factors, dtype)


def _matrices(shape: FFNShape) -> dict[str, tuple[int, int]]:
    """Name -> rows and columns of one expert's matrices."""
    return {name: (size[0], size[1]) for name, size in shape.weight_shapes().items() if len(size) == 2}


def _fits(factors: Factors, m: int, n: int) -> bool:
    numbers = isinstance(factors.rank, int) and isinstance(factors.kept, int) and factors.unit in _UNITS
    return numbers and 0 <= factors.rank <= min(m, n) and 0 <= factors.kept <= (m if factors.unit == "row" else n)


def _cast(matrix: Tensor, x: Tensor) -> Tensor:
    return placed(matrix.to(x.dtype))
