"""Bias, permission and mask: how a context's tables are read, and when they are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.routers import RouteTable
from coterie.routers.limits import allowed_routes, asked_k, biased
from coterie.routing import RouteContext

TABLE = RouteTable.with_nulls(2, 1)
LOGITS = torch.zeros(3, 3)


def add(bias: Tensor, sequence: list[int] | None = None) -> list[list[float]]:
    ids = None if sequence is None else torch.tensor(sequence)
    return biased(LOGITS, TABLE, RouteContext(bias=bias, sequence=ids)).tolist()


def test_no_limits_touch_nothing() -> None:
    assert biased(LOGITS, TABLE, RouteContext()) is LOGITS
    assert allowed_routes(LOGITS, TABLE, RouteContext()) is None


def test_bias_per_item_leaves_nulls_alone() -> None:
    assert add(torch.tensor([[1.0, 2], [3, 4], [5, 6]])) == [[1, 2, 0], [3, 4, 0], [5, 6, 0]]


def test_bias_of_one_row_serves_all() -> None:
    assert add(torch.tensor([[1.0, 2]])) == [[1, 2, 0]] * 3


def test_bias_per_sequence() -> None:
    expected = [[3, 4, 0], [1, 2, 0], [3, 4, 0]]
    assert add(torch.tensor([[1.0, 2], [3, 4]]), [1, 0, 1]) == expected
    assert add(torch.tensor([[[1.0, 2]], [[3, 4]]]), [1, 0, 1]) == expected


def test_bias_per_sequence_when_there_are_as_many_items() -> None:
    rows = torch.tensor([[1.0, 0], [2, 0], [3, 0]])
    assert add(rows[:, None], [2, 0, 1]) == [[3, 0, 0], [1, 0, 0], [2, 0, 0]]
    with pytest.raises(RoutingError, match="per item or per sequence"):
        add(rows, [2, 0, 1])
    assert add(rows, [0, 1, 2]) == add(rows) == add(rows, [0, 0, 1])


def test_the_remedy_in_the_refusal_works() -> None:
    rows, sequence = torch.tensor([[1.0, 0], [2, 0], [3, 0]]), torch.tensor([2, 0, 1])
    assert add(rows[sequence.argsort()][:, None], sequence.tolist()) == add(rows)


@pytest.mark.parametrize(
    ("shape", "sequence", "text"),
    [
        ((2, 2), None, "give RouteContext.sequence"),
        ((2, 1, 2), None, "give RouteContext.sequence"),
        ((2, 2), [0, 1, 2], "sequence 2 has no row"),
        ((2,), None, r"found \(2,\)"),
        ((2, 3, 2), [0, 1, 0], r"found \(2, 3, 2\)"),
    ],
)
def test_bias_that_fits_nothing(shape: tuple[int, ...], sequence: list[int] | None, text: str) -> None:
    with pytest.raises(RoutingError, match=text):
        add(torch.zeros(shape), sequence)


def test_bias_of_other_experts() -> None:
    with pytest.raises(OptionError, match="2 experts"):
        add(torch.zeros(3, 3))


def test_allowed_and_mask_together() -> None:
    ctx = RouteContext(allowed=torch.tensor([True, False]), mask=torch.tensor([1, 0, 1]))
    allowed = allowed_routes(LOGITS, TABLE, ctx)
    assert allowed is not None
    assert allowed.tolist() == [[True, False, True], [False, False, False], [True, False, True]]


def test_allowed_per_item() -> None:
    table = torch.tensor([[True, False], [False, True], [False, False]])
    allowed = allowed_routes(LOGITS, TABLE, RouteContext(allowed=table))
    assert allowed is not None
    assert allowed.tolist() == [[True, False, True], [False, True, True], [False, False, True]]


def test_tables_that_do_not_fit() -> None:
    with pytest.raises(RoutingError, match="mask must be"):
        allowed_routes(LOGITS, TABLE, RouteContext(mask=torch.ones(4)))
    with pytest.raises(RoutingError, match="allowed must be"):
        allowed_routes(LOGITS, TABLE, RouteContext(allowed=torch.ones(2, 2)))


def test_asked_k() -> None:
    assert asked_k(2, 4, RouteContext()) == 2
    assert asked_k(2, 4, RouteContext(overrides={"k": 4})) == 4
    with pytest.raises(OptionError, match="1 to 4"):
        asked_k(2, 4, RouteContext(overrides={"k": 5}))
