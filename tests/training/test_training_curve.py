"""What request-time options cost: measured right, and without a trace in the model."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import dense_model, routed_model, same_bits, weights_of

from coterie.errors import OptionError
from coterie.models import session_of
from coterie.training import Unseen, measure_curve, worth

IDS = torch.randint(2, 64, (100,), generator=torch.Generator().manual_seed(1))
TEXT = Unseen(IDS, 250, 20)


def test_it_is_bits_per_byte_of_every_token_but_the_first():
    model, whole = dense_model().eval(), Unseen(IDS, 250, 100)
    with torch.no_grad():
        logits = model(input_ids=IDS[None]).logits[0, :-1].log_softmax(-1)
    nats = -float(logits.gather(1, IDS[1:, None]).sum())
    assert worth(model, whole).bits_per_byte == pytest.approx(nats / math.log(2) / 250, rel=1e-5)
    assert worth(model, TEXT).bits_per_byte != worth(model, whole).bits_per_byte  # less context
    assert worth(model, TEXT).mean_experts == 0


def test_every_k_is_measured_and_nothing_is_changed():
    model = routed_model("smoe_dropout").train()
    before, base = weights_of(model), session_of(model).base
    told = []
    curve = measure_curve(model, TEXT, "k", [1, 2, 4], told.append)
    assert [(value, each.mean_experts) for value, each in curve] == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert len({each.bits_per_byte for _, each in curve}) == 3
    assert told == ["Measuring k=1", "Measuring k=2", "Measuring k=4"]
    assert same_bits(before, weights_of(model))
    assert model.training
    assert session_of(model).base is base
    assert not session_of(model).counting


def test_what_cannot_be_asked_for():
    with pytest.raises(OptionError, match="no router of ours"):
        worth(dense_model(), TEXT, {"k": 1})
    model = routed_model()
    with pytest.raises(OptionError, match="k=9"):
        worth(model, TEXT, {"k": 9})
    assert not session_of(model).base.overrides
