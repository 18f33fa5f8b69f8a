"""How many threads torch computes with while another one writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["computing"]


@contextmanager
def computing(threads: int) -> Iterator[int]:
    """Within, torch computes with at most ``threads`` (one at least) in this thread; gives the number before.

    torch's threads wait for each other without sleeping: where there are more than cores, small sums take ten times
    as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        yield before
    finally:
        torch.set_num_threads(before)
