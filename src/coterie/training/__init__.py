"""How they learn: whatever reads a loss, a label or a gradient."""

from coterie.training.pocket import train_pocket

__all__ = ["train_pocket"]
