"""Asking a block how it routes: a copy with random weights, no experts, and a listener where they were."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.bridge import own_of, reader_of

ITEMS = 64
# set aside in every copy: tensors of that name multiply, all other vectors are added
_FACTORS = ("scale", "norm", "weight")


@dataclass(frozen=True, eq=False)
class Seen:
    """What one forward of the copy showed.

    Attributes:
        logits: [T, R] of the gate.
        indices, weights: [T, K] as they reached the experts.
        block_scale: factor between the experts' sum and the block's output; None where there is more to it.
    """

    logits: Tensor
    indices: Tensor
    weights: Tensor
    block_scale: float | None = None


class Probe:
    """A block's stand-in on the CPU in float32. Not thread-safe; the block itself is not touched.

    Args:
        block: may be on the meta device; copied without its experts, other large parts return zeros.
        gate, experts: modules of the block.
        width: D of the items.

    Attributes:
        refusal: why `ask` last returned None.
    """

    def __init__(self, block: nn.Module, gate: nn.Module, experts: nn.Module, width: int) -> None:
        self._listener, self._width, self.refusal = _Listener(experts), width, ""
        memo: dict[int, Any] = {id(experts): self._listener} | _stubs(block, gate, experts)
        self._block = _on_cpu(copy.deepcopy(block, memo))
        gate_copy = memo.get(id(gate))
        self._gate: Any = _on_cpu(copy.deepcopy(gate, memo)) if gate_copy is None else gate_copy
        self._own = own_of(experts)
        self._num_experts = int(getattr(experts, "num_experts", 0))
        generator = torch.Generator().manual_seed(20)
        for name, tensor in self._tensors():
            _fill(name, tensor, self._num_experts, generator)

    def ask(self, changed: str = "", items: int = 0) -> Seen | None:
        """What random items number ``items`` do, with the tensor ``changed`` set to other numbers for this once."""
        target = dict(self._tensors()).get(changed)
        if target is None:
            return self._forward(items)
        before = target.clone()
        target.copy_(torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) + 0.5)
        try:
            return self._forward(items)
        finally:
            target.copy_(before)

    def vectors(self, routes: int) -> list[str]:
        """Tensors with one number per route."""
        return [name for name, tensor in self._tensors() if tensor.squeeze().shape == (routes,)]

    @property
    def sees_ids(self) -> bool:
        """Whether the block is given token ids."""
        return "input_ids" in inspect.signature(self._block.forward).parameters

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._block.named_parameters()
        yield from self._block.named_buffers()

    def _forward(self, number: int) -> Seen | None:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(1, ITEMS, self._width, generator=generator)
        heard: list[Any] = []
        handle = self._gate.register_forward_hook(lambda *call: heard.append(call[2]))
        try:
            seen = self._through_block(x, heard)
            return self._through_gate(x) if seen is None else seen
        except Exception as error:  # a family's own code may want anything that is not there
            self.refusal = " ".join((str(error) or type(error).__name__).split())[:120]
            return None
        finally:
            handle.remove()

    def _through_block(self, x: Tensor, heard: list[Any]) -> Seen | None:
        self._listener.heard = None
        ids = {"input_ids": torch.arange(ITEMS)[None]} if self.sees_ids else {}
        try:
            output = self._block(x, **ids)
        except Exception:  # as above; the gate alone may still answer
            return None
        logits = self._logits(heard[0]) if heard else None
        if self._listener.heard is None or logits is None:
            return None
        rows, indices, weights = self._listener.heard
        if self._listener.copies > 1:  # weighed before the experts: a row's weight is its length
            scales = (rows.view(self._listener.copies, ITEMS, -1) * x).sum(-1) / x.square().sum(-1)
            weights = scales.t().gather(-1, indices)
        return Seen(logits, indices, weights, _ratio(output, rows))

    def _through_gate(self, x: Tensor) -> Seen:
        output = self._gate(x[0])
        tables = [t.reshape(ITEMS, -1) for t in output if isinstance(t, Tensor) and t.numel() % ITEMS == 0]
        logits = self._logits(output)
        indices = next(t for t in tables if not t.is_floating_point())
        weights = next(t for t in tables if t.is_floating_point() and t.shape == indices.shape)
        assert logits is not None
        return Seen(logits, indices.long(), weights.float())

    def _logits(self, output: Any) -> Tensor | None:
        return _logits(output if self._own is None else self._own.logits_of(output), self._num_experts)


class _Listener(nn.Module):
    """Stands where the experts were and hands back what it was given."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.num_experts = getattr(experts, "num_experts", 0)
        self.reader = reader_of(experts)
        self.heard: tuple[Tensor, Tensor, Tensor] | None = None
        self.copies = 1

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        sent = self.reader(*args, **kwargs)
        indices, weights = sent.table()
        self.heard, self.copies = (sent.rows.clone(), indices.long(), weights.float()), sent.copies
        return args[0]


class _Zeros(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


def _stubs(block: nn.Module, gate: nn.Module, experts: nn.Module) -> dict[int, Any]:
    """What `copy.deepcopy` is to put in place of large parts, and of configs, which need no copy."""
    inside = {id(module) for module in (gate, experts)}
    memo: dict[int, Any] = {}
    for child in block.children():
        holds = any(id(module) in inside for module in child.modules())
        if not holds and any(parameter.dim() > 1 for parameter in child.parameters()):
            memo[id(child)] = _Zeros()
    for module in block.modules():
        if (config := getattr(module, "config", None)) is not None:
            memo[id(config)] = config
    return memo


def _on_cpu(module: nn.Module) -> nn.Module:
    return module.to_empty(device="cpu").float().eval()


def _fill(name: str, tensor: Tensor, experts: int, generator: torch.Generator) -> None:
    """Matrices random, factors one, everything that is added zero, tables of experts random."""
    if not tensor.is_floating_point():
        tensor.copy_(torch.randint(max(1, experts), tensor.shape, generator=generator))
    elif tensor.squeeze().dim() > 1:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(tensor.shape[-1]))
    else:
        tensor.fill_(float(any(word in name.rpartition(".")[2] for word in _FACTORS)))


def _logits(output: Any, experts: int) -> Tensor | None:
    """The gate's own table [T, R]; of probabilities, their logarithms."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    for each in outputs:
        if isinstance(each, Tensor) and each.is_floating_point() and each.shape[-1] >= experts:
            table = each.reshape(-1, each.shape[-1]).float()
            sums_to_one = bool((table >= 0).all()) and torch.allclose(table.sum(-1), torch.ones(len(table)), atol=1e-4)
            return table.clamp_min(1e-30).log() if sums_to_one else table
    return None


def _ratio(output: Any, rows: Tensor) -> float | None:
    """c where the block's output is c times what the experts returned."""
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.numel() != rows.numel():
        return None
    ratio = output.float().reshape(-1) / rows.reshape(-1)
    factor = float(ratio.median())
    return factor if factor and torch.allclose(ratio, torch.full_like(ratio, factor), rtol=1e-3) else None
