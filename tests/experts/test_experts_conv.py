"""Convolutions and batch norms as experts: what they are beside torch's own, and what training does to them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import BatchNormExperts, ConvExperts
from coterie.routers import routes_of
from coterie.routing import Routing

some_routes = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def gradients(module: nn.Module, x: Tensor, routing: Routing) -> list[Tensor]:
    """Rows, then the gradients of the items and of every parameter."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    rows = module.rows(x, routing)
    (rows * torch.linspace(-1, 1, rows.numel()).view_as(rows)).sum().backward()
    assert x.grad is not None
    return [rows.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@given(routes=some_routes, kernel=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]), bias=st.booleans())
@settings(deadline=None, max_examples=30)
def test_grouped_and_masked_agree(routes: list[int], kernel: int, stride: int, bias: bool) -> None:
    """In outputs and gradients, whatever the routes, experts without items included."""
    torch.manual_seed(len(routes))
    conv = ConvExperts(3, 2, 4, kernel, stride, kernel // 2, bias=bias)
    x, routing = torch.randn(len(routes), 3, 6, 5), routes_of(torch.tensor(routes), 4)
    found = gradients(conv, x, routing)
    conv.backend = "masked"
    expected = gradients(conv, x, routing)
    assert len(found) == len(expected) == 3 + bias
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["grouped", "masked"])
def test_all_experts_side_by_side_are_the_wide_convolution(backend: str) -> None:
    conv = ConvExperts(3, 2, 4, 3, padding=1, backend=backend)  # type: ignore[arg-type]
    wide = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    wide.weight = conv.weight
    x = torch.randn(5, 3, 6, 6)
    apart = [conv.rows(x, routes_of(torch.full((5,), expert), 4)) for expert in range(4)]
    torch.testing.assert_close(torch.cat(apart, 1), wide(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["grouped", "masked"])
def test_one_expert_is_a_plain_convolution_bit_for_bit(backend: str) -> None:
    conv = ConvExperts(3, 4, 1, 3, 2, 1, bias=True, backend=backend)  # type: ignore[arg-type]
    plain = nn.Conv2d(3, 4, 3, 2, 1)
    plain.weight, plain.bias = conv.weight, conv.bias
    x = torch.randn(5, 3, 6, 6)
    assert torch.equal(conv(x, routes_of(torch.zeros(5).long(), 1)), plain(x))


def test_starts_are_of_one_expert() -> None:
    """Each share is drawn as a narrow convolution is, not with the fan of all of them."""
    torch.manual_seed(0)
    conv = ConvExperts(16, 32, 8, 3)
    torch.testing.assert_close(conv.weight.std(), torch.tensor((2 / (32 * 9)) ** 0.5), atol=0, rtol=0.02)
    assert not torch.equal(conv.weight[:32], conv.weight[32:64])


@pytest.mark.parametrize("mode", ["per_expert", "shared"])
def test_one_norm_is_batch_norm_bit_for_bit(mode: str) -> None:
    """Outputs, gradients and statistics over steps of training, then in eval mode."""
    ours, plain = BatchNormExperts(3, 1, mode), nn.BatchNorm2d(3)  # type: ignore[arg-type]
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            mine.normal_()
            theirs.copy_(mine[0])
    everything = routes_of(torch.zeros(4).long(), 1)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) * 2 + 1
        y = plain(x)
        assert torch.equal(ours(x, everything), y)
    plain.zero_grad()
    (plain(x) * x).sum().backward()
    (ours(x, everything) * x).sum().backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad[0], theirs.grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(ours, name)[0], getattr(plain, name)), name
    assert torch.equal(ours.eval()(x, everything), plain.eval()(x))


@given(routes=some_routes)
@settings(deadline=None, max_examples=30)
def test_each_norm_sees_its_own_items_alone(routes: list[int]) -> None:
    torch.manual_seed(1)
    ours, plain = BatchNormExperts(3, 4), [nn.BatchNorm2d(3) for _ in range(4)]
    x, index = torch.randn(len(routes), 3, 4, 4), torch.tensor(routes)
    rows = ours.rows(x, routes_of(index, 4))
    for expert in range(4):
        if bool((index == expert).any()):
            torch.testing.assert_close(rows[index == expert], plain[expert](x[index == expert]))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(ours, name)[expert], getattr(plain[expert], name))


def test_a_shared_norm_mixes_all() -> None:
    ours, plain = BatchNormExperts(3, 4, "shared"), nn.BatchNorm2d(3)
    x = torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(ours.rows(x, routes_of(torch.tensor([0, 3, 3, 1, 0, 0]), 4)), plain(x))
    torch.testing.assert_close(ours.running_var[0], plain.running_var)


def test_one_number_per_channel_is_normalised_by_what_is_known() -> None:
    """No variance comes of one number: the running statistics serve and stay; the other experts train."""
    norm = BatchNormExperts(3, 3)
    norm.running_mean.normal_()
    before = deepcopy(norm.state_dict())
    x = torch.randn(3, 3, 1, 1)
    rows = norm.rows(x, routes_of(torch.tensor([2, 0, 0]), 3))
    torch.testing.assert_close(rows[0], (x[0] - before["running_mean"][2, :, None, None]) / (1 + 1e-5) ** 0.5)
    for expert in (1, 2):
        assert all(torch.equal(norm.state_dict()[name][expert], before[name][expert]) for name in before)
    assert norm.num_batches_tracked.tolist() == [1, 0, 0]


def test_statistics_stay_in_eval_mode() -> None:
    norm = BatchNormExperts(3, 2).eval()
    before = deepcopy(norm.state_dict())
    norm.rows(torch.randn(4, 3, 2, 2), routes_of(torch.tensor([0, 1, 1, 0]), 2))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_sorted_and_unsorted_batches_are_the_same() -> None:
    """Items that stand by expert are taken as they are; the answer is that of any order."""
    conv, x, index = ConvExperts(3, 2, 3, 3), torch.randn(8, 3, 5, 5), torch.tensor([2, 0, 1, 0, 2, 2, 0, 1])
    order = torch.argsort(index, stable=True)
    shuffled, ordered = conv.rows(x, routes_of(index, 3)), conv.rows(x[order], routes_of(index[order], 3))
    assert torch.equal(shuffled[order], ordered)


@pytest.mark.parametrize(("make", "word"), [
    (lambda: ConvExperts(0, 2, 2, 3), "1 or more"), (lambda: ConvExperts(3, 2, 2, 3, padding=-1), "0 or more"),
    (lambda: ConvExperts(3, 2, 2, 3, backend="fast"), "grouped, masked"),  # type: ignore[arg-type]
    (lambda: BatchNormExperts(3, 0), "num_experts=0"),
    (lambda: BatchNormExperts(3, 2, "each"), "per_expert, shared"),  # type: ignore[arg-type]
    (lambda: ConvExperts(3, 2, 2, 3).rows(torch.rand(4, 3, 5, 5), routes_of(torch.zeros(4).long(), 3)), "over 3"),
    (lambda: ConvExperts(3, 2, 2, 3).rows(torch.rand(4, 2, 5, 5), routes_of(torch.zeros(4).long(), 2)), "C=3"),
    (lambda: BatchNormExperts(3, 2).rows(torch.rand(4, 2, 5, 5), routes_of(torch.zeros(4).long(), 2)), "C=3"),
    (lambda: BatchNormExperts(3, 2).rows(torch.rand(4, 3, 5, 5), routes_of(torch.zeros(4).long(), 3)), "over 3"),
])  # fmt: skip
def test_what_is_not_allowed(make: Callable[[], object], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        make()
