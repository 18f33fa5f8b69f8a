"""Select parts: scores to chosen routes. One file per kind; the arithmetic is in `coterie.ops.select`."""

from coterie.routers.select.at_least_true import AtLeastTrue
from coterie.routers.select.group_limited import GroupLimited
from coterie.routers.select.top_k import TopK

__all__ = ["AtLeastTrue", "GroupLimited", "TopK"]
