"""The pocket model that is shipped, not one made here: is it what its card says?"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeForCausalLM

from coterie.training.card import write_card
from coterie.training.measure import cross_entropy
from coterie.training.report import PROMPT_WORDS, routing
from coterie.training.text import read_domains
from coterie.training.tokens import token_ids
from coterie.training.trigram import Trigram
from coterie.training.writing import known_share, most_repeated, read_words, words_of

DOMAINS = ["literature", "shakespeare", "techdocs", "medical"]
TEXTS = Path(__file__).parents[3] / "shared" / "data" / "lm-text"
needs_texts = pytest.mark.skipif(not TEXTS.is_dir(), reason="the texts the model was trained on are not here")


def read_json(path, name):
    return json.loads((path / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measures(pocket):
    return read_json(pocket, "measures.json")


@pytest.fixture(scope="module")
def samples(pocket):
    return read_json(pocket, "samples.json")


@pytest.fixture(scope="module")
def tokenizer(pocket):
    return AutoTokenizer.from_pretrained(pocket)


@pytest.fixture(scope="module")
def model(pocket):
    return AutoModelForCausalLM.from_pretrained(pocket, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def written(model, tokenizer, samples):
    """Domain -> 200 tokens that continue the first words of its text, sampled as the checkpoint says."""
    prompts = [" ".join(samples[domain].split()[:PROMPT_WORDS]) for domain in DOMAINS]
    rows = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(1)
    with torch.inference_mode():
        answers = model.generate(rows.input_ids, attention_mask=rows.attention_mask, max_new_tokens=200)
    texts = tokenizer.batch_decode(answers[:, rows.input_ids.shape[1] :], skip_special_tokens=True)
    return dict(zip(DOMAINS, texts, strict=True))


def test_it_is_small_and_a_real_mixture(pocket, model):
    assert sum(file.stat().st_size for file in pocket.iterdir()) <= 16_000_000
    assert type(model) is OlmoeForCausalLM
    config = model.config
    assert config.num_hidden_layers >= 8
    assert config.num_experts >= 16
    assert config.num_experts_per_tok >= 2
    assert 2000 <= config.vocab_size <= 4096
    assert config.dtype == torch.bfloat16 or read_json(pocket, "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_writes_words_and_does_not_go_round_in_circles(pocket, written, domain):
    text = written[domain]
    assert len(words_of(text)) >= 60
    assert known_share(text, read_words(pocket / "words.txt.gz")) >= 0.9
    assert most_repeated(text) <= 3


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_was_recorded_of_its_writing_is_true_of_the_text(pocket, measures, domain):
    record = measures["writing"][domain]
    assert record["known"] == known_share(record["text"], read_words(pocket / "words.txt.gz")) >= 0.9
    assert record["most_repeated"] == most_repeated(record["text"]) <= 3


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_predicts_better_than_a_trigram_model(model, tokenizer, measures, samples, domain):
    record = measures["perplexity"][domain]
    assert record["trigram"] == min(record["trigram_all_text"], record["trigram_own_text"])
    assert record["model"] < record["trigram"]
    ids = token_ids(samples[domain], tokenizer)
    found = math.exp(cross_entropy(model, ids, length=measures["recipe"]["length"]))
    assert found == pytest.approx(record["sample_model"], rel=0.01)
    assert found < record["sample_trigram"]


def test_kinds_of_text_use_different_experts_in_every_layer(model, tokenizer, samples):
    layers = routing(model, {domain: token_ids(samples[domain], tokenizer) for domain in DOMAINS})["layers"]
    assert len(layers) == model.config.num_hidden_layers
    assert all(layer["p"] < 0.01 for layer in layers)
    assert all(layer["p_windows"] < 0.01 for layer in layers)


def test_no_layer_leaves_most_experts_idle(model, tokenizer, samples):
    shares = routing(model, {"all": token_ids("\n\n".join(samples.values()), tokenizer)})["shares"]["all"]
    for layer in shares:
        assert sum(share > 0.25 / len(layer) for share in layer) >= len(layer) / 2


def test_its_card_is_what_the_code_writes(pocket, tmp_path):
    copy = shutil.copytree(pocket, tmp_path / "copy")
    for name in ("README.md", "loss.svg"):
        (copy / name).unlink()
    write_card(copy)
    for name in ("README.md", "loss.svg"):
        assert (copy / name).read_text(encoding="utf-8") == (pocket / name).read_text(encoding="utf-8")


def test_its_card_gives_credit(pocket):
    card = (pocket / "README.md").read_text(encoding="utf-8")
    for due in ("CC BY 4.0", "MedQuAD", "The Rust Programming Language", "public domain", "MIT or Apache-2.0"):
        assert due in card
    assert "--domains " + ",".join(DOMAINS) in card


@needs_texts
@pytest.mark.slow
def test_the_whole_test_text_says_the_same(model, tokenizer, measures):
    """From the text itself: the trigram model of a domain's own text, and the model, on all of its test text."""
    splits = read_domains(TEXTS, ["shakespeare"])["shakespeare"]
    record = measures["perplexity"]["shakespeare"]
    train, test = token_ids(splits["train"], tokenizer), token_ids(splits["test"], tokenizer)
    own = math.exp(Trigram([train], len(tokenizer)).cross_entropy(test))
    assert own == pytest.approx(record["trigram_own_text"], rel=1e-6)
    found = math.exp(cross_entropy(model, test, length=measures["recipe"]["length"]))
    assert found == pytest.approx(record["model"], rel=0.01)


@needs_texts
def test_the_words_are_those_of_the_text(pocket):
    splits = read_domains(TEXTS, ["shakespeare"])["shakespeare"]
    assert set(words_of(splits["train"])) <= read_words(pocket / "words.txt.gz")
