"""A dense layer cut into experts: nothing lost, nothing twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops import even_channels, split_columns, split_dense, split_rows

D, F = 6, 12


def dense(*, gated: bool = True, biased: bool = False) -> dict[str, Tensor]:
    ups = ("gate_proj", "up_proj") if gated else ("up_proj",)
    weights = {name: torch.randn(F, D) for name in ups} | {"down_proj": torch.randn(D, F)}
    if biased:
        weights |= {f"{name}_bias": torch.randn(F) for name in ups} | {"down_proj_bias": torch.randn(D)}
    return weights


@given(inner=st.integers(1, 40), num_experts=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_channels_are_a_partition(inner, num_experts, seed):
    order = torch.randperm(inner, generator=torch.Generator().manual_seed(seed))
    if inner % num_experts:
        with pytest.raises(OptionError, match="Try"):
            even_channels(inner, num_experts)
        return
    for given_order in (None, order):
        channels = even_channels(inner, num_experts, given_order)
        assert channels.shape == (num_experts, inner // num_experts)
        assert sorted(channels.flatten().tolist()) == list(range(inner))
    assert channels.flatten().tolist() == order.tolist()


def test_rows_and_columns():
    channels = torch.tensor([[2, 0], [1, 3]])
    up, down = torch.arange(8.0).view(4, 2), torch.arange(8.0).view(2, 4)
    assert split_rows(up, channels).tolist() == [[[4, 5], [0, 1]], [[2, 3], [6, 7]]]
    assert split_columns(down, channels).tolist() == [[[2, 0], [6, 4]], [[1, 3], [5, 7]]]
    assert split_rows(torch.arange(4.0), channels).tolist() == [[2, 0], [1, 3]]


def test_weights_of_their_own():
    weights = dense(biased=True)
    split = split_dense(weights, even_channels(F, 3))
    before = {name: weight.clone() for name, weight in weights.items()}
    for weight in split.experts.values():
        weight.zero_()
        assert weight.is_contiguous()
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_names_and_shapes(gated, biased):
    split = split_dense(dense(gated=gated, biased=biased), even_channels(F, 3))
    shapes = {name: tuple(weight.shape) for name, weight in split.experts.items()}
    ups = ("gate_proj", "up_proj") if gated else ("up_proj",)
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(ups, (3, 4, D)) | {"down_proj": (3, D, 4)}
    if biased:
        expected |= {f"{name}_bias": (3, 4) for name in ups} | {"down_proj_bias": (3, D)}
        assert not bool(split.experts["down_proj_bias"].any())
    assert shapes == expected
    assert split.output_scale == 3
    assert (split.bias is not None) == biased


def test_fused_is_gate_then_up():
    weights, channels = dense(biased=True), even_channels(F, 3)
    apart, joined = split_dense(weights, channels), split_dense(weights, channels, fused=True)
    assert set(joined.experts) == {"gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"}
    for end in ("", "_bias"):
        gate, up = joined.experts[f"gate_up_proj{end}"].chunk(2, dim=1)
        assert torch.equal(gate, apart.experts[f"gate_proj{end}"])
        assert torch.equal(up, apart.experts[f"up_proj{end}"])


def test_a_bias_that_only_some_have():
    weights = dense() | {"down_proj_bias": torch.randn(D)}
    split = split_dense(weights, even_channels(F, 2))
    assert split.bias is weights["down_proj_bias"]
    assert not any(bool(split.experts[f"{name}_bias"].any()) for name in ("gate_proj", "up_proj", "down_proj"))


def test_refusals():
    channels = even_channels(F, 3)
    weights = dense()
    with pytest.raises(OptionError, match="missing: down_proj"):
        split_dense({"up_proj": torch.zeros(F, D)}, channels)
    with pytest.raises(OptionError, match="unknown: fc1"):
        split_dense(weights | {"fc1": torch.zeros(1)}, channels)
    with pytest.raises(OptionError, match=r"up_proj must be \(12, 6\)"):
        split_dense(weights | {"up_proj": torch.zeros(D, F)}, channels)
    with pytest.raises(OptionError, match="permutation"):
        split_dense(weights, channels.clamp(max=F - 2))
    with pytest.raises(OptionError, match="permutation"):
        even_channels(F, 3, torch.arange(F - 1))
    with pytest.raises(OptionError, match=r"\[N, m\]"):
        split_dense(weights, torch.arange(F))
    with pytest.raises(OptionError, match="leave fused=False"):
        split_dense(dense(gated=False), channels, fused=True)
    with pytest.raises(OptionError, match="Try 1"):
        even_channels(F, 0)
    with pytest.raises(OptionError, match="Try 12"):
        even_channels(F, 100)
