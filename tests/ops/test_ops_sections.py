"""Where each expert's rows lie."""

from __future__ import annotations

import gc

import torch

from coterie.ops import sections, sections_of
from coterie.routing import Routing


def routing_of(item: list[int], expert: list[int], weight: float = 1.0, num_items: int | None = None) -> Routing:
    count = len(set(item)) if num_items is None else num_items
    return Routing(torch.tensor(item).long(), torch.tensor(expert).long(), torch.full((len(item),), weight), count, 3)


def test_sorted_items_need_no_copy() -> None:
    found = sections_of(routing_of([0, 1, 2], [0, 0, 2]))
    assert (found.groups, found.each_once, found.counts, found.unit, found.only) == (None, True, (2, 0, 1), True, None)


def test_unsorted_items_are_grouped() -> None:
    found = sections_of(routing_of([0, 1, 2], [2, 0, 2], 0.5))
    assert found.groups is not None
    assert found.groups.order.tolist() == [1, 0, 2]
    assert (found.each_once, found.counts, found.unit) == (True, (1, 0, 2), False)


def test_items_with_two_experts_or_none() -> None:
    assert not sections_of(routing_of([0, 0, 1], [0, 1, 2])).each_once
    assert not sections_of(routing_of([0, 2], [1, 1], num_items=3)).each_once
    assert not sections_of(routing_of([0, 0], [0, 1], num_items=2)).each_once


def test_one_expert_for_all() -> None:
    assert sections_of(routing_of([0, 1], [2, 2])).only == 2
    assert sections_of(routing_of([], [])).only == 0


def test_a_weight_that_is_not_a_number_is_not_one() -> None:
    assert not sections_of(routing_of([0], [0], float("nan"))).unit


def test_read_once_and_forgotten_with_the_routing() -> None:
    routing = routing_of([0, 1], [0, 1])
    assert sections_of(routing) is sections_of(routing)
    before = len(sections._SEEN)
    del routing
    gc.collect()
    assert len(sections._SEEN) == before - 1
