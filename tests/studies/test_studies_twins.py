"""The mixtures of the studies, their dense twins, and what they predict when they are asked."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.models.attach import session_of
from coterie.studies.predictions import bits, bits_per_byte, disagreement, ensemble, predictions
from coterie.studies.twins import Shape, dense_twin, mixture, split_twin

SHAPE = Shape(layers=2, dense=(), num_experts=4, inner=8, dense_inner=32)
MIXED = Shape(layers=2, dense=(1,), num_experts=4, inner=32, dense_inner=32)


def windows(count=6, length=16):
    return torch.randint(0, 256, (count, length))


def spread_out(model):
    """Weights large enough that experts matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name:
                parameter.mul_(20)
    return model


def test_twins_start_alike_but_for_what_one_of_them_has_not():
    sparse = mixture(MIXED, 3, "top_k", {"k": 1}).state_dict()
    dense = dense_twin(MIXED, 3).state_dict()
    shared = sparse.keys() & dense.keys()
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"} <= shared
    assert all(torch.equal(sparse[name], dense[name]) for name in shared)
    assert {name for name in dense if name not in shared} == {
        f"model.layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
    }


def test_everything_but_the_router_depends_on_the_seed_alone():
    one, other = (mixture(SHAPE, 5, *router).state_dict() for router in (("thor", {}), ("top_k", {"k": 2})))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() & other.keys())
    again, different = (mixture(SHAPE, seed, "thor", {}).state_dict() for seed in (5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], different["lm_head.weight"])


def test_equal_sizes_have_equal_parameters():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    frozen = mixture(SHAPE, 0, "smoe_dropout", {"k": 2})  # its matrices are buffers
    assert count(frozen) == count(dense_twin(SHAPE, 0))


def test_a_dense_model_cut_into_experts_is_itself_with_all_of_them():
    dense, rows = spread_out(dense_twin(SHAPE, 1)).eval(), windows()
    cut = split_twin(SHAPE, dense)
    whole = predictions(dense, rows)
    torch.testing.assert_close(predictions(cut, rows, k=4), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(predictions(cut, rows, k=2), whole, atol=1e-3)
    before = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    for k in (1, 2, 3, 4):
        bits(cut, rows, k=k)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cut.state_dict().items())


def test_asking_is_undone_and_needs_a_router():
    model, rows = mixture(SHAPE, 0, "thor", {}), windows()
    session = session_of(model)
    base = session.base
    predictions(model, rows, seed=3, draw="batch")
    assert session.base is base
    assert session.sequences is None
    assert model.training
    with pytest.raises(AssertionError, match="dense"):
        predictions(dense_twin(SHAPE, 0), rows, k=2)


def test_draws_do_not_depend_on_how_windows_are_batched():
    model, rows = spread_out(mixture(SHAPE, 0, "thor", {})), windows()
    for draw in ("token", "sequence", "batch"):
        one, other = (predictions(model, rows, seed=1, draw=draw, batch=batch) for batch in (6, 4))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(one, predictions(model, rows, seed=2, draw=draw), atol=1e-3)


def test_bits_are_those_of_the_next_byte():
    rows = windows()
    sure = 1000.0 * torch.nn.functional.one_hot(rows[:, 1:], 256).float()
    assert bits_per_byte(sure, rows) == 0
    assert bits_per_byte(torch.zeros_like(sure), rows) == pytest.approx(8)


def test_an_ensemble_averages_probabilities():
    one, other = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mean = (one.softmax(-1) + other.softmax(-1)) / 2
    torch.testing.assert_close(ensemble([one, other]).exp(), mean)
    torch.testing.assert_close(ensemble([one]), one.log_softmax(-1))


def test_disagreement_is_half_of_both_divergences():
    one, other = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    p, q = one.softmax(-1), other.softmax(-1)
    both = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    assert disagreement(one, other) == pytest.approx(float(both.mean() / 2), rel=1e-4)
    assert disagreement(one, one) == 0
    assert math.isfinite(disagreement(one * 1e4, other * 1e4))
