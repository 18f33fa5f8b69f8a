"""Families whose experts are not behind transformers' experts interface: one entry each.

An entry says what one expert looks like, which parameter is which weight of which expert, where the router
is, and how the block calls its experts. Everything else treats these families like all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from coterie.experts import FFNShape
from coterie.models.compat.gating import activation_of, gating
from coterie.models.compat.own_calls import Reader, by_expert, by_mask, by_table, by_weight, with_identities
from coterie.ranges import TensorRange


@dataclass(frozen=True)
class OwnLayout:
    """How one family keeps and calls its experts.

    Attributes:
        family: its folder in transformers.
        shape: experts module -> what one expert looks like.
        weights: name in the experts module, a regular expression whose group is the expert's number if it has one
            -> weight of `FFNShape.weight_shapes`.
        count: attribute of the experts module that is E.
        top_k: the block -> choices per item.
        gate: name of the router in the block.
        reader: experts module -> what reads a call of it.
        logits: where the router's output has the logits; None: it returns logits, weights and indices, as most do.
        spare: attribute of the experts module that says how many experts beyond E may have rows that are never read.
        flat: the experts' matrices lie below each other in one, [E x F, D].
        turned: weights with rows and columns exchanged.
        repeats: the experts get every row once per expert.
    """

    family: str
    shape: Callable[[Any], FFNShape]
    weights: Mapping[str, str]
    top_k: Callable[[Any], int]
    count: str = "num_experts"
    gate: str = "router"
    reader: Callable[[Any], Reader] = lambda module: by_table
    logits: int | None = None
    spare: str = ""
    flat: bool = False
    turned: frozenset[str] = frozenset()
    repeats: bool = False

    def find(self, name: str) -> tuple[str, int | None] | None:
        """Name in the experts module -> weight and expert (None: all of them); None if it is no weight of an expert."""
        for pattern, weight in self.weights.items():
            if (match := re.fullmatch(pattern, name)) is not None:
                return weight, int(match[1]) if match.groups() else None
        return None

    def spares(self, module: Any) -> int:
        """Experts beyond E that may have rows which are never read."""
        return int(getattr(module, self.spare)) if self.spare else 0

    def shares(self, module: Any) -> bool:
        """Whether the module's parameters are the stacked ones of `coterie.experts.FFN`."""
        return all(name == weight for name, weight in self.weights.items()) and not self.spares(module)

    def stacked(self, part: TensorRange, num_experts: int, spares: int) -> TensorRange:
        """All experts' matrices as [E, ...]: folded where they lie flat, without the spare ones."""
        rows = part.shape[0]
        if self.flat and rows % num_experts == 0:
            return replace(part, shape=(num_experts, rows // num_experts, *part.shape[1:]))
        if spares and rows == num_experts + spares:
            return replace(part, shape=(num_experts, *part.shape[1:]), nbytes=part.nbytes // rows * num_experts)
        return part

    def logits_of(self, output: Any) -> Tensor:
        """The logits in what the router returned."""
        logits: Tensor = output[self.logits or 0] if isinstance(output, tuple) else output
        return logits


def own_layout(module: nn.Module) -> OwnLayout | None:
    """The layout of an experts module that is not behind transformers' interface; None for every other module."""
    return OWN_LAYOUTS.get(type(module).__name__)


def _step3p7(module: Any) -> FFNShape:
    return FFNShape(module.hidden_dim, module.intermediate_dim, **gating(module))


def _longcat(module: Any) -> FFNShape:
    return FFNShape(module.hidden_size, module.intermediate_size, activation=activation_of(module.act_fn))


def _llama4(module: Any) -> FFNShape:
    return FFNShape(module.hidden_size, module.expert_dim, transposed=True, activation=activation_of(module.act_fn))


def _dbrx(module: Any) -> FFNShape:
    activation = activation_of(module.mlp.activation_fn)
    return FFNShape(module.hidden_size, module.ffn_hidden_size, fused=False, activation=activation)


def _switch(module: Any) -> FFNShape:
    one = module["expert_0"]
    return FFNShape(one.wi.in_features, one.wi.out_features, gated=False, activation=activation_of(one.act))


def _nllb(module: Any) -> FFNShape:
    one = module["expert_0"]
    shape = FFNShape(one.fc1.in_features, one.fc1.out_features, gated=False, activation=activation_of(one.act))
    return replace(shape, bias=True)


_FUSED = {"gate_up_proj": "gate_up_proj", "down_proj": "down_proj"}

OWN_LAYOUTS: Mapping[str, OwnLayout] = {
    "Step3p7Experts": OwnLayout("step3p7", _step3p7, _FUSED, lambda block: block.gate.top_k, gate="gate"),
    "LongcatFlashExperts": OwnLayout(
        "longcat_flash", _longcat, _FUSED, lambda block: block.router.top_k, "num_routed_experts",
        reader=with_identities, spare="zero_expert_num",
    ),
    "Llama4TextExperts": OwnLayout(
        "llama4", _llama4, _FUSED, lambda block: block.top_k, reader=by_expert, logits=1, repeats=True
    ),
    "DbrxExperts": OwnLayout(
        "dbrx", _dbrx, {r"mlp\.w1": "gate_proj", r"mlp\.v1": "up_proj", r"mlp\.w2": "down_proj"},
        lambda block: block.top_k, logits=0, flat=True, turned=frozenset({"down_proj"}),
    ),
    "SwitchTransformersExperts": OwnLayout(
        "switch_transformers", _switch,
        {r"expert_(\d+)\.wi\.weight": "up_proj", r"expert_(\d+)\.wo\.weight": "down_proj"},
        lambda block: 1, reader=by_mask, logits=2,
    ),
    "NllbMoeExperts": OwnLayout(
        "nllb_moe", _nllb,
        {
            r"expert_(\d+)\.fc1\.weight": "up_proj", r"expert_(\d+)\.fc1\.bias": "up_proj_bias",
            r"expert_(\d+)\.fc2\.weight": "down_proj", r"expert_(\d+)\.fc2\.bias": "down_proj_bias",
        },
        lambda block: 2, reader=by_weight, logits=2,
    ),
}  # fmt: skip
"""Class of the experts module -> its layout. A further family is one entry more."""
