"""Pictures for the page of `coterie split --report`: which channels experts have in common."""

from __future__ import annotations

from coterie.pictures.page import section, table
from coterie.pictures.square import square
from coterie.surgery.channels import Channels

__all__ = ["channels_parts"]

_MOST = 12  # layers whose matrices are drawn


def channels_parts(channels: Channels, exactness: str) -> list[str]:
    """Sections for the page of a split."""
    names = list(channels.about.get("domains", []))
    rows = [
        (
            name, str(layer.inner), str(len(layer.shared)), f"{layer.num_experts} x {layer.own.shape[1]}",
            str(layer.inner - layer.union),
        )
        for name, layer in channels.layers.items()
    ]  # fmt: skip
    head = ("feed-forward", "channels", "shared", "own", "in no expert")
    parts = [section("Channels", exactness, table(head, rows))]
    if any(not layer.disjoint or len(layer.shared) for layer in channels.layers.values()):
        step = -(-len(channels.layers) // _MOST)
        drawn = [
            square(f"{name}: share of a row's channels that a column has too", layer.overlaps(),
                   list(range(layer.num_experts)), [1] * layer.num_experts)
            for name, layer in list(channels.layers.items())[::step]
        ]  # fmt: skip
        text = f"Experts are in the order of the domains: {', '.join(names)}." if names else "Experts by their numbers."
        parts.append(section("What experts have in common", text, *drawn))
    return parts
