from __future__ import annotations

import pytest
import torch

from coterie.errors import OptionError, PromptError
from coterie.jobs.running.load import load
from coterie.models.prompts import Prompts
from coterie.serve import Engine, Sampling
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer
from coterie.testing.families import save_tiny_family, tiny_family

GREEDY = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("engine") / "tiny", "qwen3_moe", experts=16, k=4)


@pytest.fixture
def engine(tiny):
    host = load(tiny, context=128)
    yield Engine(host, Prompts.of(tiny, 128))
    host.coterie.close()


def test_streamed_pieces_are_the_text(engine):
    pieces = []
    generation = engine.generate(engine.prompts.encode("hello"), GREEDY, pieces.append)
    assert "".join(pieces) == generation.text
    assert generation.new_tokens <= 8
    assert 0 < generation.first_token_seconds <= generation.seconds


def test_a_follow_up_reads_only_what_is_new_and_says_the_same(engine):
    first = engine.prompts.encode("hello", raw=True)
    engine.generate(first, GREEDY)
    longer = torch.cat([first, engine.prompts.encode(" and more words", raw=True)], 1)
    lengths = []
    watch = engine.model.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    again = engine.generate(longer, GREEDY)
    watch.remove()
    assert lengths[0] < longer.shape[1]
    fresh = Engine(engine.model, engine.prompts).generate(longer, GREEDY)
    assert again.text == fresh.text


def test_a_stop_text_ends_the_answer(engine):
    ids = engine.prompts.encode("hello", raw=True)
    text = engine.generate(ids, GREEDY).text
    letter = next(letter for letter in text if letter.isascii())
    stopped = Engine(engine.model, engine.prompts).generate(ids, Sampling(8, temperature=0, stop=(letter,)))
    assert stopped.new_tokens < 8


def test_a_prompt_longer_than_a_piece_gives_the_answer_of_one_read_whole(tiny):
    ids = torch.randint(2, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    answers = []
    for prefill in (7, 64):
        host = load(tiny, context=64, prefill=prefill)
        answers.append(Engine(host, Prompts.of(tiny, 64)).generate(ids, GREEDY).text)
        host.coterie.close()
    assert answers[0] == answers[1]


def test_a_model_that_reads_with_an_encoder_keeps_no_cache(tmp_path):
    model = tiny_family("switch_transformers")
    save_tiny_family(tmp_path, model)
    tiny_tokenizer().save_pretrained(tmp_path)
    host = load(tmp_path, context=64, slots=3)
    engine = Engine(host, Prompts.of(tmp_path, 64))
    first = engine.prompts.encode("hello", raw=True)
    for ids in (first, torch.cat([first, engine.prompts.encode(" and more words", raw=True)], 1)):
        expected = model.generate(ids, max_new_tokens=8, do_sample=False)[0, 1:]
        generation = engine.generate(ids, GREEDY)
        assert generation.text == engine.prompts.tokenizer.decode(expected, skip_special_tokens=True)
        assert generation.new_tokens == len(expected)
    host.coterie.close()


def test_a_forward_beyond_the_budget_is_refused(engine):
    with pytest.raises(PromptError, match="context=129"):
        engine.model(torch.ones(1, 129, dtype=torch.int64))
    with pytest.raises(PromptError, match="batch=2"):
        engine.model(torch.ones(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"top_k": -1}])
def test_sampling_options_have_ranges(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Sampling(**wrong)
