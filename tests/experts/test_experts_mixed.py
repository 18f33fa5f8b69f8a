"""Experts of several kinds under one range of ids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts import FFN, Experts, FFNShape, Identity, Mixed, with_identity
from coterie.routing import Routing

D, T = 8, 30


def routing_over(num_experts: int, k: int = 2) -> Routing:
    chosen = torch.rand(T, num_experts).argsort(1)[:, :k]
    return Routing.from_padded(torch.rand(T, k), chosen, num_experts)


def test_ids_run_on_from_part_to_part():
    small, large = FFN(2, FFNShape(D, 4)), FFN(3, FFNShape(D, 16, gated=False))
    mixed = Mixed([small, Identity(), large])
    assert mixed.num_experts == 6
    assert [(first, end) for _, first, end in mixed.ranges()] == [(0, 2), (2, 3), (3, 6)]
    x, routing = torch.randn(T, D), routing_over(6)
    rows = mixed.rows(x, routing)
    for position, (item, expert) in enumerate(zip(routing.item.tolist(), routing.expert.tolist(), strict=True)):
        row = x[item : item + 1]
        if expert == 2:
            assert torch.equal(rows[position], row[0])
            continue
        part, own = (small, expert) if expert < 2 else (large, expert - 3)
        expected = part(row, Routing.from_padded(torch.ones(1, 1), torch.tensor([[own]]), part.num_experts))
        torch.testing.assert_close(rows[position : position + 1], expected)


def test_one_part_is_that_part():
    part = FFN(4, FFNShape(D, 6))
    x, routing = torch.randn(T, D), routing_over(4)
    torch.testing.assert_close(Mixed([part])(x, routing), part(x, routing))


def test_names_in_the_state_dict():
    mixed = with_identity(FFN(2, FFNShape(D, 4)))
    assert set(mixed.state_dict()) == {"parts.0.gate_up_proj", "parts.0.down_proj"}
    assert mixed.num_experts == 3


def test_an_identity_costs_nothing_and_returns_bits():
    x, routing = torch.randn(T, D).bfloat16(), routing_over(3)
    identity = Identity(3)
    assert not list(identity.parameters())
    assert torch.equal(identity.rows(x, routing), x[routing.item])


def test_refusals():
    with pytest.raises(OptionError, match="at least one part"):
        Mixed([])
    with pytest.raises(OptionError, match="1 or more"):
        Identity(0)
    for experts in (Identity(2), Mixed([Identity(2)])):
        with pytest.raises(OptionError, match="over 3 experts, this module has 2"):
            experts(torch.randn(T, D), routing_over(3))

    class Half(Experts):
        num_experts = 1

        def rows(self, x: Tensor, routing: Routing) -> Tensor:
            return x[routing.item, : D // 2]

    with pytest.raises(OptionError, match=r"\(8,\), \(4,\)"):
        Mixed([Identity(), Half()])(torch.randn(T, D), routing_over(2))
