"""Where a live transformers model routes."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from coterie.experts import Aliased
from coterie.models.bridge import ExpertsBridge, own_of, reader_of
from coterie.models.compat import OwnLayout, Sent, beside_text, is_experts, text_config

# what configs call the number of experts that a token is sent to
_TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")


@dataclass(frozen=True, eq=False)
class MoESite:
    """One mixture-of-experts block of a live model.

    Attributes:
        name: module path of the experts, the site's name in plans and stores: "model.layers.0.mlp.experts".
        gate_name, block_name: module paths of the router and of the block that holds both.
        gate, experts: the modules there now.
        layer: number of the decoder layer.
        num_experts: E, over which the gate decides: routes, where several lead to one expert.
        top_k: choices per item.
        own: how the family keeps and calls its experts, where it does so in its own way.
        experts_of: expert of each route, where several routes lead to one; None: route r is expert r.
    """

    name: str
    gate_name: str
    block_name: str
    gate: nn.Module
    experts: nn.Module
    layer: int
    num_experts: int
    top_k: int
    own: OwnLayout | None = None
    experts_of: tuple[int, ...] | None = None

    @property
    def num_true(self) -> int:
        """Routes to experts with weights: all but the identity that a router of ours may have beside them."""
        return self.num_experts - (getattr(self.gate, "extra_experts", 0) if _is_bridge(self.experts) else 0)

    @property
    def num_stored(self) -> int:
        """Experts that have weights of their own."""
        return self.num_true if self.experts_of is None else max(self.experts_of) + 1

    def experts_at(self, routes: Tensor) -> Tensor:
        """Ids of routes, `num_true` or more where there is none, to ids of experts, `num_stored` where none."""
        if self.experts_of is None:
            return routes.clamp(max=self.num_true)
        table = torch.tensor((*self.experts_of, self.num_stored), device=routes.device)
        return table[routes.clamp(max=self.num_true)]

    @property
    def gate_takes_rows(self) -> bool:
        """Whether the router decides by a row alone: some also want token ids, or what the last layer's said."""
        given = inspect.signature(self.gate.forward).parameters.values()
        return sum(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in given) == 1

    def choices(self, x: Tensor) -> Tensor:
        """[T, K] experts this site's router would choose for ``x`` [T, D], E where none. Nobody records it.

        For routers with `gate_takes_rows` only.
        """
        if hasattr(self.gate, "session"):  # a router of ours, which must not take this for its turn
            own: Tensor = cast(Any, self.gate).choices(x)
            return own
        output = self.gate.forward(x)
        if self.gate_is_usual:
            chosen: Tensor = output[2]
            return chosen
        return self.logits(output).topk(self.top_k, dim=-1).indices

    @property
    def gate_is_usual(self) -> bool:
        """Whether the router returns logits, weights and indices."""
        return self.own is None or self.own.logits is None

    def logits(self, output: Any) -> Tensor:
        """The logits in what the router returned."""
        if self.own is not None:
            return self.own.logits_of(output)
        logits: Tensor = output[0] if isinstance(output, tuple) else output
        return logits

    def sent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sent:
        """What a call of the experts says about who goes where."""
        return reader_of(self.experts)(*args, **kwargs)


def find_sites(model: Any) -> list[MoESite]:
    """The MoE blocks of the text side of ``model`` in the order of computing, on any device; empty for a dense model.

    A block is a module with a child behind transformers' experts interface (or our bridge) and, in itself or in
    the module around it, a child that routes over as many experts; or one that a family's `OwnLayout` describes.
    """
    beside = tuple(f"{name}." for name in beside_text(model)) if hasattr(model, "get_decoder") else ()
    modules = dict(model.named_modules())
    return [
        site
        for name, module in modules.items()
        if (isinstance(module, ExpertsBridge) or is_experts(module) or own_of(module)) and not name.startswith(beside)
        if (site := _site(model, modules, name)) is not None
    ]


def _site(model: Any, modules: dict[str, nn.Module], name: str) -> MoESite | None:
    experts: Any = modules[name]
    block = name.rpartition(".")[0]
    if (own := own_of(experts)) is not None:
        return _own_site(own, modules, name, block)
    for around in (block, block.rpartition(".")[0]):
        prefix = f"{around}." if around else ""
        for child, gate in modules[around].named_children():
            if f"{prefix}{child}" != name and _routes(gate, _count(experts)):
                return MoESite(
                    name, f"{prefix}{child}", around, gate, experts, _layer(name),
                    num_experts=_count(experts), top_k=_top_k(gate, model), experts_of=aliases_of(experts),
                )  # fmt: skip
    return None


def aliases_of(experts: nn.Module) -> tuple[int, ...] | None:
    """Expert of each route of an experts module, where several routes lead to one; None where none do."""
    if isinstance(experts, ExpertsBridge):
        return next((part.experts_of for part in experts.modules() if isinstance(part, Aliased)), None)
    found: tuple[int, ...] | None = getattr(experts, "experts_of", None)
    return found


def _count(experts: Any) -> int:
    """Routes to an experts module."""
    return int(getattr(experts, "num_routes", experts.num_experts))


def _own_site(own: OwnLayout, modules: dict[str, nn.Module], name: str, block: str) -> MoESite:
    experts: Any = modules[name]
    gate = f"{block}.{own.gate}" if block else own.gate
    count = "num_experts" if isinstance(experts, ExpertsBridge) else own.count
    return MoESite(
        name, gate, block, modules[gate], experts, _layer(name),
        num_experts=int(getattr(experts, count)), top_k=own.top_k(modules[block]), own=own,
    )  # fmt: skip


def _routes(gate: nn.Module, experts: int) -> bool:
    """Routers say over how many experts they route; Gemma's only hold a scale for each."""
    if hasattr(gate, "top_k"):
        count = getattr(gate, "num_experts", None)
        # an identity that a router of ours gives items to is there once our experts are
        return count == experts or (count is not None and count - getattr(gate, "extra_experts", 0) == experts)
    scale = getattr(gate, "per_expert_scale", None)
    return scale is not None and tuple(scale.shape) == (experts,)


def _top_k(gate: Any, model: Any) -> int:
    if (own := getattr(gate, "top_k", None)) is not None:
        return int(own)
    config = text_config(model.config)
    return next(int(k) for name in _TOP_K if (k := getattr(config, name, None)) is not None)


def _is_bridge(experts: nn.Module) -> bool:
    return isinstance(experts, ExpertsBridge)


def _layer(path: str) -> int:
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(number[1]) if number else 0
