"""Loss-free balancing: a correction of the selection that follows the load (arXiv 2408.15664)."""

from __future__ import annotations

import torch
from torch import Tensor


def route_load(chosen: Tensor, num_routes: int) -> Tensor:
    """[R] int64: how often each route was chosen. ``chosen`` is [T, K], R (ignored) where empty."""
    return torch.bincount(chosen.reshape(-1), minlength=num_routes + 1)[:num_routes]


def corrected(correction: Tensor, load: Tensor, rate: float = 1e-3) -> Tensor:
    """The next correction: ``rate`` more for a route below the mean load, ``rate`` less for one above.

    Algorithm 1 of the paper. A training loop adds the loads of a whole step (all micro-batches, all processes)
    and writes the result into ``router.select.correction``; no gradient is involved.

    Args:
        correction: [R] float32, added to the probabilities when routes are chosen.
        load: [R], as `route_load`.
        rate: the paper's u.
    """
    load = load.to(correction.device, torch.float64)
    return correction + rate * torch.sign(load.mean() - load).to(correction.dtype)
