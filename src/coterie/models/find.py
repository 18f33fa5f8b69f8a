"""Where a live transformers model routes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import is_experts


@dataclass(frozen=True, eq=False)
class MoESite:
    """One mixture-of-experts block of a live model.

    Attributes:
        name: module path of the experts, the site's name in plans and stores: "model.layers.0.mlp.experts".
        gate_name, block_name: module paths of the router and of the block that holds both.
        gate, experts: the modules there now.
        layer: number of the decoder layer.
        num_experts: E.
        top_k: choices per item.
    """

    name: str
    gate_name: str
    block_name: str
    gate: nn.Module
    experts: nn.Module
    layer: int
    num_experts: int
    top_k: int

    def choices(self, x: Tensor) -> Tensor:
        """[T, K] experts this site's router would choose for ``x`` [T, D]. Past its hooks, so nobody records it."""
        chosen: Tensor = self.gate.forward(x)[2]
        return chosen


def find_sites(model: nn.Module) -> list[MoESite]:
    """The MoE blocks of ``model`` in layer order, on any device; empty for a dense model.

    A block is a module with a child behind transformers' experts interface (or our bridge) and a child that
    routes over as many experts.
    """
    return [site for name, module in model.named_modules() if (site := _site(name, module)) is not None]


def _site(path: str, block: nn.Module) -> MoESite | None:
    children = dict(block.named_children())
    experts = {n: c for n, c in children.items() if isinstance(c, ExpertsBridge) or is_experts(c)}
    if len(experts) != 1:
        return None
    (experts_name, module), prefix = next(iter(experts.items())), f"{path}." if path else ""
    for name, child in children.items():
        if name != experts_name and _routes(child, module):
            return MoESite(
                f"{prefix}{experts_name}", f"{prefix}{name}", path, child, module, _layer(path),
                num_experts=_number(module, "num_experts"), top_k=_number(child, "top_k"),
            )  # fmt: skip
    return None


def _routes(gate: nn.Module, experts: nn.Module) -> bool:
    return hasattr(gate, "top_k") and getattr(gate, "num_experts", None) == _number(experts, "num_experts")


def _layer(path: str) -> int:
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(number[1]) if number else 0


def _number(module: Any, name: str) -> int:
    return int(getattr(module, name))
