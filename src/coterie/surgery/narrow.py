"""A live model that computes in float32 with its large dense weights as they are stored: half the memory, and less
time than casting them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.models.checkpoint import Checkpoint
from coterie.models.tensors import FLOATS

__all__ = ["dense_dtype", "widened"]

_LARGE = 64 << 20  # bytes of a checkpoint below which nothing is gained
_NUMBERS = 1 << 19  # of a matrix in float32 at a time: they stay in the processor's cache


def dense_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What to load dense weights in before `widened`: their own type where all have one, else float32."""
    if checkpoint.encoded or sum(part.nbytes for part in checkpoint.ranges.values()) < _LARGE:
        return torch.float32
    found = {FLOATS.get(part.dtype) for part in checkpoint.dense.values()}
    return checkpoint.compute_dtype if found == {checkpoint.compute_dtype} else torch.float32


def widened(host: Any) -> Any:
    """``host`` computing in float32, in place: attention's projections, the embedding and the head keep their type, and
    all else is cast. What it computes is what it would with everything cast, to rounding."""
    ends = [host.get_input_embeddings(), host.get_output_embeddings()]
    kept = {id(module) for module in ends} | {
        id(child) for module in host.modules() if type(module).__name__.endswith("Attention")
        for child in module.children()
    }  # fmt: skip
    for module in list(host.modules()):
        narrow = {nn.Linear: _NarrowLinear, nn.Embedding: _NarrowEmbedding}.get(type(module))
        if narrow is not None and id(module) in kept:
            module.__class__ = narrow
            continue
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = tensor.data.float()
    return host


class _NarrowLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        x = input.float()
        bias = None if self.bias is None else self.bias.float()
        if self.weight.dtype == x.dtype:
            return F.linear(x, self.weight, bias)
        out = x.new_empty(*x.shape[:-1], self.out_features)
        step = max(1, _NUMBERS // self.in_features)
        for start in range(0, self.out_features, step):
            out[..., start : start + step] = F.linear(x, self.weight[start : start + step].float())
        return out if bias is None else out + bias


class _NarrowEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()
