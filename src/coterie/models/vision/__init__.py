"""Convolutional networks for images, dense and of experts from one definition each."""

from coterie.models.vision.building import build_vision
from coterie.models.vision.model import Seen, VisionModel
from coterie.models.vision.saving import is_vision, load_vision, read_vision, save_vision
from coterie.models.vision.spec import VisionSpec

__all__ = [
    "Seen",
    "VisionModel",
    "VisionSpec",
    "build_vision",
    "is_vision",
    "load_vision",
    "read_vision",
    "save_vision",
]
