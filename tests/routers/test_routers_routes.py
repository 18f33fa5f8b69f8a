"""Routes to experts: identity, nulls, aliases."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import OptionError
from coterie.routers import RouteTable


def test_identity() -> None:
    table = RouteTable.identity(3)
    chosen = torch.tensor([[2, 0, 3]])
    assert (table.num_routes, table.num_experts, table.is_identity) == (3, 3, True)
    assert table.experts_of(chosen).tolist() == [[2, 0, 3]]
    assert table.per_route(torch.tensor([5, 6, 7]), 0).tolist() == [5, 6, 7]


def test_nulls_come_after_the_experts() -> None:
    table = RouteTable.with_nulls(2, 3)
    assert table == RouteTable((0, 1, 2, 2, 2), 2)
    assert (table.num_routes, table.is_identity) == (5, False)
    # null and empty (R = 5) both become E = 2: no expert
    assert table.experts_of(torch.tensor([[0, 4, 1, 5]])).tolist() == [[0, 2, 1, 2]]
    assert table.per_route(torch.tensor([[5.0, 6.0]]), -1).tolist() == [[5.0, 6.0, -1.0, -1.0, -1.0]]


def test_aliases() -> None:
    table = RouteTable.aliases([1, 0, 1])
    assert (table.num_routes, table.num_experts, table.is_identity) == (3, 2, False)
    assert table.experts_of(torch.tensor([[0, 1], [2, 3]])).tolist() == [[1, 0], [1, 2]]
    assert table.per_route(torch.tensor([True, False]), True).tolist() == [False, True, False]


def test_a_table_with_no_nulls_is_the_identity() -> None:
    assert RouteTable.with_nulls(4, 0) == RouteTable.identity(4)


@pytest.mark.parametrize(("experts", "num_experts"), [((), 2), ((0, 3), 2), ((-1,), 2)])
def test_a_route_must_lead_somewhere(experts: tuple[int, ...], num_experts: int) -> None:
    with pytest.raises(OptionError, match="null"):
        RouteTable(experts, num_experts)


def test_per_route_wants_one_value_per_expert() -> None:
    with pytest.raises(OptionError, match="2 experts"):
        RouteTable.identity(2).per_route(torch.zeros(3), 0)
