"""Score parts: items to logits over routes. One file per kind."""

from coterie.routers.score.hash import HashScore, random_table
from coterie.routers.score.linear import LinearScore

__all__ = ["HashScore", "LinearScore", "random_table"]
