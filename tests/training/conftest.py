from __future__ import annotations

import gzip
import random

import pytest

from coterie.training.pocket import PocketRecipe
from coterie.training.trainer import Options

PEOPLE = ["Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Henry"]
ANIMALS = ["otter", "heron", "badger", "lizard", "magpie", "beetle", "salmon", "weasel"]


def story(random, sentences):
    lines = [
        f"{random.choice(PEOPLE)} walked to the {random.choice(['river', 'market', 'tower'])} and spoke to "
        f"{random.choice(PEOPLE)} of the {random.choice(['war', 'harvest', 'weather'])}."
        for _ in range(sentences)
    ]
    return "\n\n".join(lines)


def manual(random, sentences):
    lines = [
        f"The {random.choice(ANIMALS)} weighs {random.randint(1, 99)} grams; see table {random.randint(1, 99)} "
        f"for the {random.choice(['length', 'colour', 'range'])} of the {random.choice(ANIMALS)}."
        for _ in range(sentences)
    ]
    return "\n\n".join(lines)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Two domains with their three splits; one file is compressed."""
    path, dice = tmp_path_factory.mktemp("texts"), random.Random(0)
    for domain, write in {"stories": story, "manuals": manual}.items():
        for split, sentences in {"train": 300, "valid": 60, "test": 60}.items():
            (path / f"{domain}.{split}.txt").write_text(write(dice, sentences))
    plain = path / "manuals.train.txt"
    (path / "manuals.train.txt.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


@pytest.fixture(scope="session")
def small():
    """A recipe of seconds: steps -> PocketRecipe."""

    def recipe(steps, **options):
        shape = {
            "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512,
            "norm_topk_prob": True, "tie_word_embeddings": True, "router_aux_loss_coef": 0.01,
        }  # fmt: skip
        defaults = {"batch": 4, "rate": 1e-2, "save_every": 3, "log_every": 2}
        return PocketRecipe(300, 32, 0.8, shape, Options(steps, **(defaults | options)), measure_every=4)

    return recipe
