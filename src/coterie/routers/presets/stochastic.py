"""No router at all: experts by lot."""

from __future__ import annotations

from coterie.routers.base import Router
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import ConstantScore
from coterie.routers.select import Draw
from coterie.routers.select.draw import Level, Pairing
from coterie.routers.weigh import Uniform


@PRESETS.register("thor")
def thor(
    width: int,
    num_experts: int,
    k: int = 1,
    *,
    draw: Level = "token",
    pairing: Pairing = "independent",
    fixed: int = 0,
) -> Router:
    """THOR (arXiv 2110.04260): ``k`` experts drawn by lot, averaged. Nothing is learned, and the draws are keyed.

    The authors train with ``draw="batch"`` and two passes that a consistency loss holds together, and decode with
    ``token``; the request-time option ``draw`` changes it for a call. `Draw` says what each level is.

    Args:
        width: D, which nothing depends on.
        num_experts: E.
        k: experts per item, each with weight 1/k.
        draw: token, sequence, batch, legacy_position, average (all experts) or fixed.
        pairing: of the passes: independent draws, or distinct experts.
        fixed: the expert of ``draw="fixed"``.

    Raises:
        OptionError: ``k`` or ``fixed`` does not fit E, or a word is not known.
    """
    return Router(ConstantScore(num_experts), Draw(k, num_experts, level=draw, pairing=pairing, fixed=fixed), Uniform())
