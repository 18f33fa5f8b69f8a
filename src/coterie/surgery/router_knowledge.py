"""What is known of the routers of a checkpoint: how they decide, and how many of their experts they can lose."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import skeleton
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.find import MoESite, find_sites
from coterie.models.hypotheses import SCORES
from coterie.surgery.deciding import Decider
from coterie.surgery.routing_tensors import router_tensors

__all__ = ["RouterKnowledge", "RouterLimits", "is_linear", "router_knowledge", "router_limits"]


@dataclass(frozen=True)
class RouterLimits:
    """How many experts a router can lose.

    Attributes:
        least: that it needs.
        blocks: equal groups that must stay equal; 1 where there are none.
        refusal: why no row of it can be taken away; "" where rows can.
    """

    least: int = 1
    blocks: int = 1
    refusal: str = ""


@dataclass(frozen=True)
class RouterKnowledge:
    """Of one layer.

    Attributes:
        decide: how the router chooses and weighs; None where that is not known.
        limits: what it can lose.
        shares: several of its routes may lead to one expert.
    """

    decide: Decider | None
    limits: RouterLimits
    shares: bool = True


def router_limits(facts: RouterFacts) -> RouterLimits:
    """Of a router by its facts."""
    if facts.preset:
        return RouterLimits(facts.top_k, 1, f"it is a router of Coterie ({facts.preset})")
    if facts.num_routes not in (None, facts.num_experts):
        return RouterLimits(facts.top_k, 1, "some of its routes lead to no expert")
    if facts.groups is not None:
        decide = Decider(facts.top_k, groups=facts.groups)
        return RouterLimits(decide.least(), decide.blocks)
    if facts.choice != "largest scores":
        return RouterLimits(facts.top_k, 1, facts.note or f"it chooses by {facts.choice or 'a rule not known'}")
    return RouterLimits(facts.top_k)


@torch.no_grad()
def is_linear(site: MoESite) -> bool:
    """Whether the logits of a gate are a linear map of its input and no more. The gate itself is not touched."""
    gate = copy.deepcopy(site.gate).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    vectors = {}
    for name, tensor in [*gate.named_parameters(), *gate.named_buffers()]:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
        vectors[name] = tensor
    matrices = [tensor for tensor in vectors.values() if tensor.dim() == 2 and tensor.shape[0] == site.num_experts]
    if len(matrices) != 1:
        return False
    x = torch.randn(8, matrices[0].shape[1], generator=generator)
    try:
        # some gates are handed the block's correction, too
        given = inspect.signature(gate.forward).parameters.values()
        wanted = sum(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in given)
        found = site.logits(gate.forward(x, *[torch.zeros(site.num_experts)] * (wanted - 1))).float().reshape(8, -1)
    except Exception:  # a family's own code may want anything that is not there
        return False
    bias = sum((tensor for name, tensor in vectors.items() if name.rpartition(".")[2] == "bias"), torch.zeros(1))
    plain = x @ matrices[0].T
    scores: list[Callable[[Tensor], Tensor]] = [torch.nn.Identity(), *SCORES.values()]
    return any(
        torch.allclose(found, score(logits), rtol=1e-3, atol=1e-4)
        for logits in (plain, plain + bias)
        for score in scores
    )


def router_knowledge(checkpoint: Checkpoint) -> dict[str, RouterKnowledge]:
    """Module path of the experts -> what is known of their router. Reads no weights; a few forwards of tiny items."""
    model = skeleton(checkpoint.config, checkpoint.compute_dtype)
    known: dict[tuple[object, ...], RouterKnowledge] = {}
    found = {}
    tensors = router_tensors(checkpoint)
    for site in find_sites(model):
        fixed = next((tensor.disk for tensor in tensors[site.name] if not tensor.rows), "")
        shapes = tuple(tuple(each.shape) for each in site.gate.state_dict().values())
        key = (type(site.gate), site.num_experts, site.top_k, shapes, bool(fixed))
        if key not in known:
            known[key] = _known(model, site, fixed)
        found[site.name] = known[key]
    return found


def _known(model: object, site: MoESite, fixed: str) -> RouterKnowledge:
    facts = router_facts(model, site)
    limits = router_limits(facts)
    if fixed and not limits.refusal:
        limits = RouterLimits(limits.least, limits.blocks, f"its gate has {fixed!r}, which has no row for each expert")
    scales_inputs = site.own is not None and site.own.repeats
    decide = None if scales_inputs or not is_linear(site) else Decider.of(facts)
    return RouterKnowledge(decide, limits, site.own is None)
