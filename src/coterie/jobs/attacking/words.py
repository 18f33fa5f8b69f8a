"""What a report says in sentences: what the model is, and what one must know to read the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from coterie.jobs.attacking.outcome import Kind, Outcome
from coterie.jobs.attacking.victim import Victim
from coterie.models.vision import VisionModel

__all__ = ["about", "learned_from", "notes_on", "seen_before"]


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


def learned_from(directory: str | Path) -> str:
    """What images the model in ``directory`` says that it was trained on; "" where it does not say."""
    try:
        report: Any = json.loads((Path(directory) / "report.json").read_text(encoding="utf-8"))
        return str(report["images"]["source"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def seen_before(learned: str, data: str) -> list[str]:
    """A sentence where images that were learned from are attacked; none where nothing is known of it."""
    whole = data == learned.partition(":")[0]  # digits holds digits:train
    if not learned or not (whole or data == learned or _same_place(data, learned)):
        return []
    return [f"The model learned from {learned}, so these images flatter it. Attack others, such as a held-out part."]


def _same_place(one: str, other: str) -> bool:
    return Path(one).exists() and Path(one).resolve() == Path(other).resolve()


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
