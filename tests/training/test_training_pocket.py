from __future__ import annotations

import pytest

from coterie.training.pocket import python_prose, train_pocket


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    losses = []
    path = tmp_path_factory.mktemp("pocket")
    train_pocket(path, steps=12, progress=lambda step, steps, loss: losses.append(loss))
    return path, losses


def test_training_learns(pocket):
    _, losses = pocket
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5


def test_what_it_saves_is_a_servable_checkpoint(pocket):
    from coterie.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(pocket[0])
    assert len(checkpoint.sites) == 4
    assert checkpoint.sites[0].num_experts == 16
    assert (pocket[0] / "tokenizer.json").exists()


def test_the_text_is_prose_that_every_python_has():
    texts = list(python_prose())
    assert sum(map(len, texts)) > 1_000_000
    assert any("exception" in text for text in texts)
