"""How many threads torch computes with while another one writes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["computing", "one_thread"]


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


def one_thread(name: str) -> ThreadPoolExecutor:
    """A thread beside this one, in which torch computes alone; here it goes on with as many threads as before."""
    before = torch.get_num_threads()
    made = ThreadPoolExecutor(1, thread_name_prefix=name)
    made.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(before)  # the libraries beneath have a number for the whole process too
    return made
