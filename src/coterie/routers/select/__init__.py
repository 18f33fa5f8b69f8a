"""Select parts: scores to chosen routes. One file per kind; the arithmetic is in `coterie.ops`."""

from coterie.routers.select.at_least_true import AtLeastTrue
from coterie.routers.select.capacity import Capacity
from coterie.routers.select.copies_beside import CopiesBeside
from coterie.routers.select.draw import Draw
from coterie.routers.select.expert_choice import ExpertChoice
from coterie.routers.select.group_limited import GroupLimited
from coterie.routers.select.min_p import MinP
from coterie.routers.select.threshold import Threshold
from coterie.routers.select.top_k import TopK, correction_of
from coterie.routers.select.top_p import TopP

__all__ = [
    "AtLeastTrue",
    "Capacity",
    "CopiesBeside",
    "Draw",
    "ExpertChoice",
    "GroupLimited",
    "MinP",
    "Threshold",
    "TopK",
    "TopP",
    "correction_of",
]
