"""Several routes to one expert: rows, sums, gradients."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import OptionError
from coterie.experts import FFN, Aliased, FFNShape
from coterie.routing import Routing


def made():
    inner = FFN(3, FFNShape(8, 4))
    table = torch.tensor([[0, 3], [1, 2], [4, 1], [2, 5]])
    weights = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9], [0.4, 0.6]])
    return inner, Aliased(inner, (0, 1, 2, 0, 1, 2)), Routing.from_padded(weights, table, 6)


def test_rows_are_those_of_the_expert_behind_the_route():
    inner, experts, routing = made()
    x = torch.randn(4, 8)
    rows = experts.rows(x, routing)
    for row, item, route in zip(rows, routing.item.tolist(), routing.expert.tolist(), strict=True):
        alone = Routing(torch.tensor([0]), torch.tensor([route % 3]), torch.ones(1), 1, 3)
        torch.testing.assert_close(row, inner.rows(x[item : item + 1], alone)[0])


def test_an_expert_chosen_twice_has_the_sum_of_the_weights():
    inner, experts, routing = made()
    x = torch.randn(4, 8, requires_grad=True)
    whole = experts(x, routing)
    torch.testing.assert_close(
        whole, torch.zeros_like(whole).index_add(0, routing.item, experts.rows(x, routing) * routing.weight[:, None])
    )
    whole.sum().backward()
    assert x.grad is not None
    assert inner.down_proj.grad is not None


def test_routes_that_lead_nowhere_are_refused():
    inner, experts, _ = made()
    for experts_of in ((), (0, 3), (-1, 0)):
        with pytest.raises(OptionError, match="routes must lead to experts 0 to 2"):
            Aliased(inner, experts_of)
    with pytest.raises(OptionError, match="over 3 routes, this module has 6"):
        experts(torch.randn(1, 8), Routing(torch.tensor([0]), torch.tensor([0]), torch.ones(1), 1, 3))
