"""Numbers made of losses and routes, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.studies.learning import tiny_moe
from coterie.studies.measures import adjusted_mutual_information, correlation, look, mutual_information, sample


def test_a_look_agrees_with_the_model():
    model = tiny_moe(0, 2, "top_p", {"p": 0.4})
    windows = torch.randint(0, 256, (5, 16))
    seen = look(model, windows, batch=2)
    assert model.training
    model.eval()
    with torch.no_grad():
        mean = float(model(input_ids=windows, labels=windows).loss)
    assert seen.bits == pytest.approx(mean / math.log(2), rel=1e-5)
    assert seen.loss.shape == (5, 15)
    assert seen.experts.shape == (2, 5, 16)
    assert seen.first.shape == seen.ratio.shape == seen.entropy.shape == (2, 80)
    assert bool((seen.experts >= 1).all())
    assert bool((seen.ratio >= 1).all())
    assert 0 < float(seen.entropy.min()) <= float(seen.entropy.max()) <= math.log(8) + 1e-5
    assert seen.mean_experts == pytest.approx(sum(seen.by_layer) / 2)
    assert torch.equal(look(model, windows, batch=5).experts, seen.experts)


def test_a_look_at_a_dense_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    seen = look(LlamaForCausalLM(config), torch.randint(0, 256, (3, 8)))
    assert seen.loss.shape == (3, 7)
    assert math.isfinite(seen.bits)


def test_a_sample_lies_evenly():
    data = bytes(range(256)) * 40
    windows = sample(data, 5, 16)
    assert windows.shape == (5, 16)
    assert windows[0, 0] == 0
    assert windows[-1, -1] == 255
    assert torch.equal(windows.diff(dim=1) % 256, torch.ones(5, 15, dtype=torch.int64))
    assert sample(data[:40], 5, 16).shape == (2, 16)


def test_correlation():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0)
    assert math.isnan(correlation(a, torch.ones(4)))


def test_mutual_information():
    a = torch.tensor([0, 0, 1, 1])
    assert mutual_information(a, a) == pytest.approx(math.log(2))
    assert mutual_information(a, 5 - a) == pytest.approx(math.log(2))
    assert mutual_information(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert mutual_information(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])) == pytest.approx(
        0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    )


def test_adjusted_mutual_information_is_0_by_chance_and_1_where_one_tells_the_other():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 8, (4000,), generator=generator) for _ in range(2))
    adjusted, baseline = adjusted_mutual_information(a, b)
    assert abs(adjusted) < 0.005
    assert baseline == pytest.approx(49 / (2 * 4000), rel=0.3)  # (8 - 1)(8 - 1) / 2T, as theory has it
    assert adjusted_mutual_information(a, 7 - a)[0] == pytest.approx(1)
    half = torch.where(torch.rand(4000, generator=generator) < 0.5, a, b)
    assert 0.1 < adjusted_mutual_information(a, half)[0] < 0.5
    assert math.isnan(adjusted_mutual_information(torch.zeros(9).long(), torch.zeros(9).long())[0])
