"""Score parts: items to logits over routes. One file per kind."""

from coterie.routers.score.blend import Blend
from coterie.routers.score.constant import ConstantScore
from coterie.routers.score.cosine import Cosine
from coterie.routers.score.frozen import Frozen
from coterie.routers.score.hash import HashScore, random_table
from coterie.routers.score.image import PooledScore, SmallConvScore
from coterie.routers.score.linear import LinearScore
from coterie.routers.score.recurrent import Recurrent
from coterie.routers.score.residual import ResidualScore
from coterie.routers.score.with_nulls import WithNulls

__all__ = [
    "Blend",
    "ConstantScore",
    "Cosine",
    "Frozen",
    "HashScore",
    "LinearScore",
    "PooledScore",
    "Recurrent",
    "ResidualScore",
    "SmallConvScore",
    "WithNulls",
    "random_table",
]
