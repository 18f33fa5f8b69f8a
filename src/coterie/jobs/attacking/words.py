"""What a report says in sentences: what the model is, and what one must know to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from coterie.jobs.attacking.outcome import Kind, Outcome
from coterie.jobs.attacking.victim import Victim
from coterie.models.vision import VisionModel

__all__ = ["about", "notes_on"]


def about(model: nn.Module) -> str:
    """In a few words."""
    parameters = f"{sum(p.numel() for p in model.parameters()):,} parameters"
    if not isinstance(model, VisionModel):
        return f"{type(model).__name__}, {parameters}"
    spec = model.spec
    width = f" at {spec.ratio:g} of its width" if spec.ratio < 1 else ""
    if not spec.routed:
        return f"{spec.architecture}, dense{width}, {parameters}"
    router = (
        f"one router ({spec.router}) on the image" if spec.placement == "image" else "a router in every routed layer"
    )
    plural = "s, each" if spec.experts > 1 else ""
    return f"{spec.architecture} of {spec.experts} expert{plural}{width}, {router}, {parameters}"


def notes_on(victim: Victim, outcomes: Sequence[Outcome]) -> list[str]:
    """Sentences below the tables."""
    notes = []
    routers = outcomes[0].kept is not None
    if routers and getattr(getattr(victim.model, "spec", None), "placement", "image") == "layer":
        notes.append(
            f"Every layer decides: there are {victim.experts}^{len(victim.sites)} pathways, of which the attacks on "
            f"forced experts try {victim.experts}, the same expert everywhere. They are no bound here."
        )
    if any(one.kind is Kind.WEAK for one in outcomes):
        notes.append(
            "The released evaluation of AdvMoE spends its budget on the router's training label as well as on the "
            "mistake: compare it with numbers made the same way, never with standard ones."
        )
    return notes
