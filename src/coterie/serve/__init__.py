"""Running a model for others: the engine that turns prompts into text."""

from coterie.serve.engine import Engine, Generation
from coterie.serve.sampling import Sampling

__all__ = ["Engine", "Generation", "Sampling"]
