"""Our experts in place of a family's, with what routers ask for around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from coterie.errors import UnsupportedError
from coterie.experts import Aliased, Experts, with_identity
from coterie.models.attach import Attachment, attach
from coterie.models.bridge import ExpertsBridge
from coterie.models.convert import experts_from
from coterie.models.find import MoESite, find_sites
from coterie.models.resident import resident_experts

__all__ = ["aliased", "completed", "experts_of_kinds", "give_experts"]


def give_experts(model: Any, kinds: Mapping[str, Experts] | None = None) -> Attachment | None:
    """Our experts in place of the family's, sharing their weights, where ours compute the same and there is memory."""
    sites = find_sites(model)
    if not sites or any(parameter.is_meta for parameter in model.parameters()):
        return None
    needed = any(getattr(site.gate, "extra_experts", 0) or site.experts_of is not None for site in sites)
    try:
        return attach(model, experts=lambda site, old: _ours(site, old, kinds or {}))
    except UnsupportedError:
        if needed or kinds:  # only ours can give an item back, and lead several routes to one expert
            raise
        return None


def _ours(site: MoESite, old: nn.Module, kinds: Mapping[str, Experts]) -> Experts:
    inner = kinds.get(site.name)
    if inner is None:
        inner = old.true_experts if isinstance(old, ExpertsBridge) else experts_from(old)
    return completed(aliased(inner, site.experts_of), site.gate)


def experts_of_kinds(checkpoint: Any) -> dict[str, Experts]:
    """The experts that transformers' loader cannot read, read."""
    if checkpoint is None or not any(site.kind is not None for site in checkpoint.sites):
        return {}
    return {site.name: resident_experts(site) for site in checkpoint.sites if site.kind is not None}


def aliased(experts: Experts, experts_of: tuple[int, ...] | None) -> Experts:
    """``experts`` behind the routes that lead to them, where several lead to one."""
    return experts if experts_of is None else Aliased(experts, experts_of)


def completed(experts: Experts, gate: Any) -> Experts:
    """``experts`` with an identity beside them where the router gives items back as they are."""
    if not getattr(gate, "extra_experts", 0):
        return experts
    return with_identity(experts)
