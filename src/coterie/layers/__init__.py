"""The joint: a router and experts become one layer."""

from coterie.layers.moe import MoE

__all__ = ["MoE"]
