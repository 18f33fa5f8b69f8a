"""The joint: a router and experts become one layer."""

from coterie.layers.conv import RoutedConv, assignments_as_items, combined
from coterie.layers.moe import MoE

__all__ = ["MoE", "RoutedConv", "assignments_as_items", "combined"]
