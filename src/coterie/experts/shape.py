"""The shape of one feed-forward expert: its matrices, its activation, its counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["ACTIVATIONS", "FFNShape"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "linear": _identity,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""The names Hugging Face configs use in ``hidden_act``."""


@dataclass(frozen=True)
class FFNShape:
    """What one feed-forward expert looks like; says everything `expert_forward` must know beside the weights.

    Attributes:
        width: D, of rows in and out.
        inner: F, of the hidden layer.
        gated: ``act(gate(x)) * up(x)``; otherwise ``act(up(x))``.
        bias: every matrix has one.
        fused: gate and up lie in one matrix ``gate_up_proj``; only looked at when gated.
        transposed: matrices are [in, out] instead of [out, in].
        interleaved: in the fused matrix gate and up alternate instead of following each other.
        activation: a name of `ACTIVATIONS`.
        clamp: before they meet, the gate is cut above at this value and the up projection on both sides.
        alpha: ``gate * sigmoid(alpha * gate) * (up + 1)`` in place of ``act(gate) * up`` (gpt-oss).
        gate_fn: ``(gate [n, F], up [n, F]) -> [n, F]`` in place of all of that.
        post_norm: each expert ends in an RMS norm of its rows times ``1 + post_norm``.
        post_norm_eps: of that norm.

    Raises:
        OptionError: a size below one, an unknown activation, a gate option on an expert without gate.
    """

    width: int
    inner: int
    gated: bool = True
    bias: bool = False
    fused: bool = True
    transposed: bool = False
    interleaved: bool = False
    activation: str = "silu"
    clamp: float | None = None
    alpha: float | None = None
    gate_fn: Callable[[Tensor, Tensor], Tensor] | None = None
    post_norm: bool = False
    post_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width < 1 or self.inner < 1:
            raise OptionError(f"width and inner must be 1 or more, found {self.width} and {self.inner}.")
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation {self.activation!r} is unknown; choose one of: {', '.join(ACTIVATIONS)}.")
        if self.interleaved and not (self.gated and self.fused):
            raise OptionError("interleaved is a layout of the fused gate: it needs gated=True and fused=True.")
        if not self.gated and any(option is not None for option in (self.gate_fn, self.clamp, self.alpha)):
            raise OptionError("gate_fn, clamp and alpha need gated=True.")

    @property
    def up_names(self) -> tuple[str, ...]:
        """The matrices that read the row: fused, separate, or the one without gate."""
        if not self.gated:
            return ("up_proj",)
        return ("gate_up_proj",) if self.fused else ("gate_proj", "up_proj")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one expert's weights, in the order they are computed with."""
        out = 2 * self.inner if self.up_names == ("gate_up_proj",) else self.inner
        sizes = dict.fromkeys(self.up_names, (out, self.width)) | {"down_proj": (self.width, self.inner)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns) in sizes.items():
            shapes[name] = (columns, rows) if self.transposed else (rows, columns)
            if self.bias:
                shapes[f"{name}_bias"] = (rows,)
        return shapes | ({"post_norm": (self.width,)} if self.post_norm else {})

    def num_parameters(self, num_experts: int = 1) -> int:
        """Of ``num_experts`` experts together."""
        return num_experts * sum(prod(shape) for shape in self.weight_shapes().values())

    def active_parameters(self, k: float) -> float:
        """Expected number of parameters an item meets when it has ``k`` experts on average."""
        return k * self.num_parameters()

    def nbytes(self, dtype: torch.dtype, num_experts: int = 1) -> int:
        """Bytes of ``num_experts`` experts stored in ``dtype``."""
        return self.num_parameters(num_experts) * dtype.itemsize

    def hidden(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        """What the down projection reads. Without ``gate``, ``up`` is the fused [n, 2F], or the bare [n, F]."""
        if self.gated and gate is None:
            gate, up = (up[..., ::2], up[..., 1::2]) if self.interleaved else up.chunk(2, dim=-1)
        if gate is None:
            return ACTIVATIONS[self.activation](up)
        return self.gate_fn(gate, up) if self.gate_fn is not None else self._gate(gate, up)

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.clamp is not None:
            gate, up = gate.clamp(max=self.clamp), up.clamp(-self.clamp, self.clamp)
        if self.alpha is not None:
            return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        return ACTIVATIONS[self.activation](gate) * up

    def finish(self, rows: Tensor, scale: Tensor | None) -> Tensor:
        """The post norm; rows as they are where there is none.

        The scale comes before the norm, and the product is rounded to the dtype of the rows between
        the two, as the checkpoints that have such a norm were trained.
        """
        if scale is None:
            return rows
        wide = torch.promote_types(rows.dtype, torch.float32)
        scaled = (rows.to(wide) * (1 + scale.to(wide))).to(rows.dtype).to(wide)
        return (scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + self.post_norm_eps)).to(rows.dtype)
