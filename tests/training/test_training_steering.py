"""Routers that are moved by what they were seen to do."""

from __future__ import annotations

import pytest
from tiny_models import dense_model, options_for, routed_model, windows_for

from coterie.errors import OptionError
from coterie.models.routed import config_of
from coterie.training import Objective, fit, read_log
from coterie.training.settings import set_threshold, thresholds
from coterie.training.steering import BalanceBias, MeanExperts, NullOffset


def trained(model, tmp_path, steering, steps=30, **others):
    options = options_for(steps, **others)
    fit(model, windows_for(options), options, tmp_path, callbacks=[steering], objective=Objective(balance=0))
    return [record for record in read_log(tmp_path) if "loss" in record]


@pytest.mark.parametrize(
    ("router", "options"),
    [("top_p", {"p": 0.4}), ("min_p", {"ratio": 0.9}), ("adamoe", {"k": 3, "num_nulls": 4})],
)  # fmt: skip
def test_a_budget_is_held(router, options, tmp_path):
    """From wherever it starts, the mean number of experts nears the target."""
    steering = MeanExperts(2.5)
    log = trained(routed_model(router, experts=8, **options), tmp_path, steering, 120, rate=1e-3, batch=4)
    means = [sum(record["experts"]) / len(record["experts"]) for record in log]
    late = sum(means[-20:]) / 20
    assert abs(late - 2.5) < abs(means[0] - 2.5) / 2
    assert late == pytest.approx(2.5, abs=0.4)


def test_the_threshold_that_was_found_is_saved_with_the_model(tmp_path):
    model = routed_model("top_p")
    trained(model, tmp_path, MeanExperts(1.2), 10)
    found = {part.value for part in thresholds(model)}
    assert len(found) == 1
    assert found == {config_of(model)["router"]["options"]["p"]}
    assert found != {0.4}


def test_the_correction_evens_the_load_out(tmp_path):
    """A gate that favours expert 0 loses its favour, without any balance loss."""
    model = routed_model("sigmoid_bias", experts=4, k=1)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.score.weight"):
            parameter.data.mul_(0.1)
    corrections = [module for module in model.modules() if getattr(module, "correction", None) is not None]
    for part in corrections:
        part.correction[0] = 0.5
    log = trained(model, tmp_path, BalanceBias(0.05), 40, rate=1e-4)
    shares = [max(record["load"][0]) / sum(record["load"][0]) for record in log]
    assert shares[0] == 1
    assert sum(shares[-10:]) / 10 < 0.6


def test_where_there_is_no_threshold_none_is_set():
    model = routed_model("top_k")
    set_threshold(model, 0.5)
    assert "p" not in config_of(model)["router"]["options"]


@pytest.mark.parametrize(
    ("router", "steering", "said"),
    [
        ("top_k", lambda: BalanceBias(), "sigmoid_bias"),
        ("top_k", lambda: MeanExperts(1.5), "top_p"),
        ("top_k", lambda: NullOffset(), "adamoe"),
        ("top_p", lambda: MeanExperts(40), "more than the 4 experts"),
    ],
)
def test_routers_without_it_are_named(router, steering, said, tmp_path):
    with pytest.raises(OptionError, match=said):
        trained(routed_model(router), tmp_path, steering(), 1)


def test_a_dense_model_is_not_steered(tmp_path):
    with pytest.raises(OptionError, match="model has none"):
        trained(dense_model(), tmp_path, MeanExperts(1.5), 1)


@pytest.mark.parametrize(("kind", "wrong"), [(BalanceBias, 0), (MeanExperts, -1), (NullOffset, 1), (NullOffset, -0.1)])
def test_numbers_that_make_no_sense(kind, wrong):
    with pytest.raises(OptionError, match="Write"):
        kind(wrong)
