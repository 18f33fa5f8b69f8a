"""Convolutional networks for images, dense and of experts from one definition each."""

from coterie.models.vision.building import build_vision
from coterie.models.vision.cost import LayerCost, VisionCost, smaller_routers, vision_cost
from coterie.models.vision.model import NETWORKS, Seen, VisionModel
from coterie.models.vision.saving import check_vision, is_vision, load_vision, read_vision, save_vision
from coterie.models.vision.spec import VisionSpec

__all__ = [
    "NETWORKS",
    "LayerCost",
    "Seen",
    "VisionCost",
    "VisionModel",
    "VisionSpec",
    "build_vision",
    "check_vision",
    "is_vision",
    "load_vision",
    "read_vision",
    "save_vision",
    "smaller_routers",
    "vision_cost",
]
