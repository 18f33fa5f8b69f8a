"""The contestants: transformers' own block, ours with the same tensors, and a dense layer of the active size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import wants_kernel
from coterie.layers import MoE
from coterie.models.convert import experts_from, router_from
from layers.shapes import LayerShape

OURS = "coterie"
DENSE = "dense"
PEERS = ("eager", "grouped_mm")  # transformers' implementations of its experts that are of use on a processor
ARMS = (DENSE, *PEERS, OURS)

_EAGER_BYTES = 64 * 1024**3  # of gradients that "eager" makes; more takes a minute and is left out

Layer = Callable[[Tensor], Tensor]


class Contest:
    """One layer shape in one dtype: every arm as a function of x [T, D], over the same parameters.

    Attributes:
        layers: arm -> one function per copy of the weights.
        parameters: of the first copy, in a fixed order; what gradients are compared of.
    """

    def __init__(self, shape: LayerShape, dtype: torch.dtype, seed: int) -> None:
        torch.manual_seed(seed)
        self.shape, self.dtype = shape, dtype
        blocks = [_block(shape, dtype) for _ in range(shape.copies)]
        ours = [_ours(block) for block in blocks]
        dense = [_dense(shape, dtype) for _ in blocks]
        self.layers: dict[str, list[Layer]] = {DENSE: list(dense), OURS: list(ours)}
        for peer in PEERS:
            self.layers[peer] = [_peer(block, peer) for block in blocks]
        self.parameters = list(blocks[0].parameters())
        self._modules: list[Any] = [*blocks, *dense]

    @torch.no_grad()
    def tokens(self, count: int, seed: int) -> Tensor:
        """[count, D], none of which leaves it open who its experts are: rounded scores tie, and ties go either way."""
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(3 * count + 64, self.shape.width, generator=draw).to(self.dtype)
        best = self._modules[0].gate(x)[0].sort(descending=True).values
        clear = best[:, self.shape.top_k - 1] > best[:, self.shape.top_k]
        return x[clear][:count]

    def arms(self, backward: bool) -> list[str]:
        """Those that run. The backward pass of "eager" makes a gradient of all experts for each expert."""
        shape = self.shape
        gradients = shape.experts**2 * shape.expert_parameters * self.dtype.itemsize
        return [arm for arm in ARMS if not (backward and arm == "eager" and gradients > _EAGER_BYTES)]

    def forget_gradients(self) -> None:
        for module in self._modules:
            module.zero_grad(set_to_none=True)


def _block(shape: LayerShape, dtype: torch.dtype) -> Any:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=shape.width, intermediate_size=shape.inner, num_experts=shape.experts,
        num_experts_per_tok=shape.top_k, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = PEERS[0]
    block = OlmoeSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return block.to(dtype)


def _peer(block: Any, implementation: str) -> Layer:
    def run(x: Tensor) -> Tensor:
        block.experts.config._experts_implementation = implementation
        output: Tensor = block(x[None])[0]
        return output

    return run


def _ours(block: Any) -> MoE:
    experts = experts_from(block.experts)
    experts.compiled = wants_kernel(True, 0)
    return MoE(router_from(block.gate, block.experts.config), experts)


def _dense(shape: LayerShape, dtype: torch.dtype) -> nn.Module:
    """One SwiGLU of the parameters a token meets, gate and up in one matrix as in the experts."""
    from torch.nn.functional import silu

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = shape.top_k * shape.inner
            self.gate_up = nn.Linear(shape.width, 2 * inner, bias=False)
            self.down = nn.Linear(inner, shape.width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            y: Tensor = self.down(silu(gate) * up)
            return y

    return Dense().to(dtype)
