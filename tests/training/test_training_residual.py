from __future__ import annotations

import pytest
import torch
from tiny_models import dense_model, routed_model
from torch import nn

from coterie.errors import OptionError, UnsupportedError
from coterie.training import residual_dropout

IDS = torch.arange(2, 18)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("make", [dense_model, routed_model])
def test_it_drops_while_training_and_only_then(make):
    model = make()
    plain = logits(model.train())
    undo = residual_dropout(model, 0.5)
    assert not torch.equal(logits(model), plain)
    assert not torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model.eval()), plain)
    undo()
    assert torch.equal(logits(model.train()), plain)


def test_both_blocks_of_every_layer_are_dropped():
    model = dense_model()
    residual_dropout(model, 0.999999)  # as good as everything: what is left of the layers is the embedding
    alone = model.lm_head(model.model.norm(model.model.embed_tokens(IDS)))
    torch.testing.assert_close(logits(model.train()), alone.detach())


def test_checkpointed_layers_drop_the_same_again():
    found = []
    for checkpointed in (False, True):
        model = dense_model()
        residual_dropout(model, 0.3)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_is_refused():
    with pytest.raises(OptionError, match="share"):
        residual_dropout(dense_model(), 1.0)
    with pytest.raises(UnsupportedError, match="no layer"):
        residual_dropout(nn.Linear(2, 2), 0.1)
