"""The contestants: one transformers model with two implementations of its experts, one of ours with and without kernel.

All are in one process, so that they take turns token by token; it holds the weights twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from offloading.routes import ForcedRoutes, RouteTable, make_routes
from offloading.scales import Scale

import coterie
from coterie.models.linears import use_kernel
from coterie.units import format_bytes

PEERS = ("grouped_mm", "eager")
OURS, PLAIN = "coterie", "coterie, plain"
ARMS = (*PEERS, OURS, PLAIN)
TITLES = {
    "grouped_mm": "transformers, grouped_mm (its default)",
    "eager": "transformers, eager",
    OURS: "Coterie",
    PLAIN: "Coterie without the kernel",
}


@dataclass(frozen=True)
class Arm:
    """A model, how to switch it to this arm, and its routes, which start again at every prompt."""

    model: Any
    switch: Callable[[], None]
    routes: ForcedRoutes


def make_arms(checkpoint: Path, scale: Scale, positions: int, seed: int) -> dict[str, Arm]:
    """Load both models. Blocks while they are read.

    Raises:
        RuntimeError: the machine does not have the memory for every expert twice.
    """
    table = make_routes("uniform", scale, positions, seed)
    return _ours(checkpoint, table, scale, positions) | _peers(checkpoint, table)


def _ours(checkpoint: Path, table: RouteTable, scale: Scale, positions: int) -> dict[str, Arm]:
    model = coterie.load(checkpoint, context=positions)
    slots, experts = model.coterie.budget.slots, scale.layers * scale.experts
    if slots < experts:
        needed = format_bytes(2 * (scale.dense_bytes + scale.experts_bytes))
        raise RuntimeError(
            f"Only {slots} of {experts} experts fit in memory now. The models need {needed}: close other programs."
        )
    routes = ForcedRoutes(model, table)
    return {
        OURS: Arm(model, lambda: use_kernel(model), routes),
        PLAIN: Arm(model, lambda: use_kernel(model, False), routes),
    }


def _peers(checkpoint: Path, table: RouteTable) -> dict[str, Arm]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    routes = ForcedRoutes(model, table)
    return {name: Arm(model, lambda name=name: model.set_experts_implementation(name), routes) for name in PEERS}
