"""Whole feed-forwards as experts, and the rows that tell them apart."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import OptionError
from coterie.surgery.upcycle import added_row, appended, copies, prompt_rows, scaled_down, side_by_side


def weights(seed=0, inner=6, width=4, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return {
        "up_proj": torch.randn(inner, width, generator=draw).to(dtype),
        "down_proj": torch.randn(width, inner, generator=draw).to(dtype),
        "down_proj_bias": torch.randn(width, generator=draw).to(dtype),
    }


def test_copies_without_noise_are_equal_bit_for_bit():
    one = weights(dtype=torch.bfloat16)
    stack = copies(one, 3)
    assert all(torch.equal(stack[name][expert], one[name]) for name in one for expert in range(3))
    assert stack["up_proj"].dtype == torch.bfloat16


def test_noise_is_a_share_of_each_matrix_and_spares_biases():
    one = {**weights(inner=200, width=100), "up_proj": 30 * weights(inner=200, width=100)["up_proj"]}
    stack = copies(one, 3, noise=0.1, seed=5)
    for name in ("up_proj", "down_proj"):
        rms = one[name].square().mean().sqrt()
        assert float((stack[name] - one[name]).std() / rms) == pytest.approx(0.1, rel=0.03)
        assert not torch.equal(stack[name][0], stack[name][1])
    assert all(torch.equal(part, one["down_proj_bias"]) for part in stack["down_proj_bias"])
    again, other = copies(one, 3, noise=0.1, seed=5), copies(one, 3, noise=0.1, seed=6)
    assert torch.equal(stack["up_proj"], again["up_proj"])
    assert not torch.equal(stack["up_proj"], other["up_proj"])


@pytest.mark.parametrize(("count", "noise"), [(0, 0.0), (2, -0.1)])
def test_copies_that_cannot_be(count, noise):
    with pytest.raises(OptionError, match="1 or more"):
        copies(weights(), count, noise=noise)


def test_models_side_by_side():
    stack = side_by_side([weights(0), weights(1)], ["a", "b"])
    assert torch.equal(stack["up_proj"][1], weights(1)["up_proj"])
    with pytest.raises(OptionError, match=r"a has down_proj of \(4, 6\), b of \(4, 8\)"):
        side_by_side([weights(0), weights(1, inner=8)], ["a", "b"])
    with pytest.raises(OptionError, match="b of none"):
        side_by_side([weights(0), {"up_proj": weights()["up_proj"]}], ["a", "b"])


def test_one_more_expert():
    stack = copies(weights(0), 2)
    grown = appended(stack, weights(1, dtype=torch.bfloat16), "new")
    assert grown["up_proj"].shape == (3, 6, 4)
    assert grown["up_proj"].dtype == torch.float32
    assert torch.equal(grown["up_proj"][:2], stack["up_proj"])
    with pytest.raises(OptionError, match="as wide as an expert"):
        appended(stack, weights(1, inner=8), "new")


def test_outputs_are_scaled_and_nothing_else():
    small = scaled_down(weights(), 0.5)
    assert torch.equal(small["down_proj"], 0.5 * weights()["down_proj"])
    assert torch.equal(small["down_proj_bias"], 0.5 * weights()["down_proj_bias"])
    assert torch.equal(small["up_proj"], weights()["up_proj"])


def test_each_experts_prompts_lead_to_it():
    means = torch.randn(4, 16) + 5  # most of a state is what all have in common
    rows, alike = prompt_rows(means, sharpness=2.0)
    logits = means @ rows.T
    assert logits.argmax(1).tolist() == [0, 1, 2, 3]
    assert float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt()) == pytest.approx(2.0, rel=1e-4)
    assert 0.9 < alike < 1


def test_negative_prompts_lead_away():
    means, negative = torch.randn(2, 16), torch.full((2, 16), torch.nan)
    negative[0] = means[0] + torch.randn(16)
    rows, _ = prompt_rows(means, negative)
    assert means[0] @ rows[0] > negative[0] @ rows[0]
    assert torch.allclose(rows @ means.mean(0), torch.zeros(2), atol=1e-4)  # what all have in common favours nobody
    assert not torch.allclose(rows[0], prompt_rows(means)[0][0])


def test_equal_prompts_leave_rows_of_zeros():
    rows, alike = prompt_rows(torch.ones(3, 8))
    assert not rows.any()
    assert alike == pytest.approx(1)


def test_the_row_of_one_more_expert():
    rows, own, other = torch.randn(4, 16), torch.randn(16), torch.randn(16)
    assert torch.allclose(added_row(rows), rows.mean(0))
    row = added_row(rows, own)
    assert row @ own > (rows @ own).max()
    row = added_row(rows, own, other)
    assert row @ own > (rows @ own).max()
    assert torch.allclose(row @ other, rows.mean(0) @ other, atol=1e-4)
