"""What a router does, found by asking it.

Seventy families write the same few ideas in seventy ways, and their configs name them in as many. So no table
of families is read here: a copy of the block gets random weights and a listener in place of its experts, is
given random items, and what reaches the experts is held against the ways to score, choose and weigh that the
field knows. What fits none of them is None: not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from coterie.models.compat import text_config
from coterie.models.find import MoESite
from coterie.models.hypotheses import Groups, Weighing, chosen_as, confined, same_choice, weighed_as
from coterie.models.probe import Probe, Seen

__all__ = ["Groups", "RouterFacts", "router_facts"]

# config fields: losses on the routing, noise in training, groups, experts for everybody
_LOSSES = re.compile(r"aux_loss|z_loss|load_balanc|balance_coef|balancing_(coef|loss)")
_JITTER = re.compile(r"jitter")
_GROUPS = ("n_group", "num_group", "num_expert_group", "n_groups")
_KEPT = ("topk_group", "topk_groups", "num_limited_groups")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")


@dataclass(frozen=True)
class RouterFacts:
    """How one site routes. None means "not known", never "no".

    Attributes:
        router: class of the gate.
        num_experts: E.
        num_routes: R; above E where some routes lead to no expert.
        top_k: K, choices per item.
        score: a name of `coterie.models.hypotheses.SCORES`, or "sparsemixer": logits -> scores.
        choice: "largest scores", "groups" or "token id".
        groups: where the choice is confined to some groups of experts.
        renormalised: the weights of an item always sum to ``scale``.
        scale: factor on the weights.
        block_scale: factor of the block on the sum of its experts.
        correction: tensor added to the scores for the choice alone; "" where nothing is.
        logit_bias: tensor added to the logits; "" where nothing is.
        expert_scale: tensor that multiplies the weights expert by expert; "" where nothing does.
        shared: number of experts that every item passes; 0 where there are none.
        shared_width: inner width of all of them together.
        shared_gated: their output passes a gate of its own.
        jitter, losses: config fields: noise in training, coefficients of losses on the routing.
        note: why something is not known; "" where nobody knows better.
        preset: the preset of ours with its options, where the model is routed by one; all else is then of no matter.
    """

    router: str
    num_experts: int
    num_routes: int | None
    top_k: int
    score: str | None = None
    choice: str | None = None
    groups: Groups | None = None
    renormalised: bool | None = None
    scale: float | None = None
    block_scale: float | None = None
    correction: str | None = None
    logit_bias: str | None = None
    expert_scale: str | None = None
    shared: int = 0
    shared_width: int | None = None
    shared_gated: bool = False
    jitter: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    preset: str = ""

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line for people, such as "softmax over 64 experts, top 8, weights as they are"."""
        if self.preset:
            return f"{self.preset} over {self._routes()}"
        score = self.score or "score function not known"
        return ", ".join([f"{score} over {self._routes()}", f"top {self.top_k}", *self._choice(), *self._weights()])

    def _routes(self) -> str:
        nulls = (self.num_routes or 0) - self.num_experts
        return f"{self.num_experts} experts" + (f" and {nulls} that compute nothing" if nulls > 0 else "")

    def _choice(self) -> list[str]:
        if self.choice == "largest scores":
            parts = []
        elif self.groups is not None:
            parts = [self.groups.describe()]
        else:
            parts = ["way to choose not known" if self.choice is None else f"chosen by {self.choice}"]
        return parts + ["correction for the choice alone"] * bool(self.correction)

    def _weights(self) -> list[str]:
        kinds = {None: "weights not known", True: "weights renormalised", False: "weights as they are"}
        parts = [kinds[self.renormalised] + _times(self.scale)]
        parts += [f"sum of the experts{_times(self.block_scale)}"] * bool(_times(self.block_scale))
        parts += ["bias on the logits"] * bool(self.logit_bias)
        return parts + ["a scale per expert"] * bool(self.expert_scale)


def _times(scale: float | None) -> str:
    return "" if scale is None or abs(scale - 1) < 2e-3 else f" times {scale:.4g}"


@torch.no_grad()
def router_facts(model: Any, site: MoESite) -> RouterFacts:
    """What the router of ``site`` does. ``model`` may be a skeleton and is not touched.

    Costs a copy of the block without its experts and a few forwards of 64 random items through it. The global
    random state is left alone.
    """
    if hasattr(site.gate, "session"):
        return _ours(model, site)
    block = model.get_submodule(site.block_name)
    config = getattr(block, "config", None) or text_config(model.config)
    facts = RouterFacts(
        type(site.gate).__name__, site.num_experts, None, site.top_k, **_shared(model, site, config),
        jitter=_numbers(config, _JITTER), losses=_numbers(config, _LOSSES),
    )  # fmt: skip
    probe = Probe(block, site.gate, site.experts, text_config(model.config).hidden_size)
    seen = probe.ask()
    if seen is None:
        return replace(facts, note=f"the router answers only inside its model ({probe.refusal})")
    return replace(facts, **_read(probe, seen, site.gate, config))


def _ours(model: Any, site: MoESite) -> RouterFacts:
    """Of a site with a router of ours, which says so itself."""
    gate: Any = site.gate
    config = text_config(model.config)
    record = getattr(model.config, "coterie", None) or {"router": {"name": type(gate.inner).__name__, "options": {}}}
    options = ", ".join(f"{name}={value}" for name, value in record["router"]["options"].items())
    routes = getattr(getattr(gate.inner, "routes", None), "num_routes", None)
    return RouterFacts(
        type(gate.inner).__name__, site.num_true, routes, site.top_k, **_shared(model, site, config),
        preset=f"{record['router']['name']} ({options})" if options else str(record["router"]["name"]),
    )  # fmt: skip


def _read(probe: Probe, seen: Seen, gate: Any, config: Any) -> dict[str, Any]:
    noise = getattr(gate, "router_jitter_noise", 0.0)
    weighing = weighed_as(seen.logits, seen.indices, seen.weights, noise)
    facts: dict[str, Any] = {
        "num_routes": seen.logits.shape[1], "top_k": seen.indices.shape[1], "block_scale": seen.block_scale,
        **_weighing(weighing), **_roles(probe, seen),
    }  # fmt: skip
    other = probe.ask(items=1) if probe.sees_ids else None
    if other is not None and same_choice(other.indices, seen.indices):
        return facts | {"choice": "token id"}
    return facts | _choice(seen, weighing, _group_sizes(gate, config))


def _weighing(weighing: Weighing | None) -> dict[str, Any]:
    if weighing is None:
        return {"note": "the weights follow from the logits in no way known here"}
    return {"score": weighing.score, "renormalised": weighing.renormalised, "scale": weighing.scale}


def _choice(seen: Seen, weighing: Weighing | None, sizes: tuple[int, int] | None) -> dict[str, Any]:
    k = seen.indices.shape[1]
    if same_choice(seen.indices, chosen_as(seen.logits, k), seen.weights):
        return {"choice": "largest scores"}
    if sizes is not None and weighing is not None and weighing.score is not None:
        for rule in ("two best", "best"):
            expected = chosen_as(confined(seen.logits, weighing.score, *sizes, rule), k)
            if same_choice(seen.indices, expected, seen.weights):
                return {"choice": "groups", "groups": Groups(*sizes, rule)}
    return {"note": "the choice follows from the logits in no way known here"}


def _roles(probe: Probe, seen: Seen) -> dict[str, str]:
    """What each tensor with one number per route is for, seen by changing it alone."""
    roles = {"correction": "", "logit_bias": "", "expert_scale": ""}
    for name in probe.vectors(seen.logits.shape[1]):
        other = probe.ask(changed=name)
        if other is None:
            continue
        shift = other.logits - seen.logits
        if shift.abs().max() > 1e-4:
            roles["logit_bias"] = name if shift.std(0).max() < 1e-4 else roles["logit_bias"]
        elif not same_choice(other.indices, seen.indices):
            roles["correction"] = name
        elif not torch.allclose(other.weights, seen.weights, atol=1e-5):
            roles["expert_scale"] = name
    return roles


def _group_sizes(gate: Any, config: Any) -> tuple[int, int] | None:
    """(groups, groups an item may use), where the gate or the config names them."""
    found = [next((v for source in (gate, config) for name in names if (v := _count(source, name))), 0)
             for names in (_GROUPS, _KEPT)]  # fmt: skip
    return (found[0], found[1]) if all(found) else None


def _count(source: Any, name: str) -> int:
    value = getattr(source, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def _numbers(config: Any, pattern: re.Pattern[str]) -> dict[str, float]:
    """Config fields of such a name that hold a number other than zero."""
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if pattern.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value
    }


def _shared(model: nn.Module, site: MoESite, config: Any) -> dict[str, Any]:
    """What stands beside the routed experts: whatever is called shared in the same layer."""
    layer = re.match(r"(?:.*?\.)?\d+\.", f"{site.block_name}.")
    prefix = f"{site.block_name}." if layer is None else layer[0]
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefix) and "shared" in name.removeprefix(prefix)
    ]
    linears = [(name, module) for name, module in found if isinstance(module, nn.Linear)]
    if not any(True for _, module in found for _ in module.parameters(recurse=False)):
        return {"shared": 0}
    width = config.hidden_size
    inner = [module.in_features for _, module in linears if module.out_features == width]
    return {
        "shared": next((count for name in _SHARED if (count := _count(config, name))), 1),
        "shared_width": inner[-1] if inner else None,
        "shared_gated": any(module.out_features == 1 for _, module in linears),
    }
