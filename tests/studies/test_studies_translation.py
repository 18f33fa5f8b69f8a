"""Translation with THOR: pairs, batches, the encoder-decoder with experts, its loss, and a run of a few steps."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
import torch

from coterie.errors import MissingExtraError, OptionError
from coterie.studies import Bench, judge
from coterie.studies import thor_translation as study
from coterie.studies.translation_model import Lesson, translator
from coterie.studies.translation_text import Encoded, PairBatches, padded, pairs_of, read_pairs, vocabulary

COUNTS = {"train": 80, "valid": 8, "test": 8}
ANIMALS = {"otter": "nutria", "heron": "garza", "trout": "trucha", "mouse": "ratón", "badger": "tejón"}
PLACES = {"river": "río", "field": "campo", "wood": "bosque", "town": "pueblo", "garden": "jardín", "lake": "lago"}


def lines(counts=COUNTS):
    """JSON lines of made-up pairs."""
    made = [
        (f"The {animal} saw {n} {place}s.", f"La {ANIMALS[animal]} vio {n} {PLACES[place]}.")
        for n in range(2, 9) for animal in ANIMALS for place in PLACES
    ]  # fmt: skip
    splits = [split for split, count in counts.items() for _ in range(count)]
    pairs = zip(splits, made, strict=False)
    return [json.dumps({"split": split, "en": en, "es": es}, ensure_ascii=False) for split, (en, es) in pairs]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines()), encoding="utf-8")
    return tmp_path


def small(router="thor", num_experts=2, **options):
    return translator(0, 40, 0, 1, num_experts=num_experts, router=router, options=options)


def batch(rows=3):
    ids, mask = padded([[5, 6, 7, 0], [8, 9, 0], [10, 0]][:rows], 1)
    labels, _ = padded([[11, 12, 0], [13, 14, 15, 0], [16, 0]][:rows], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_of(lesson, rows=None):
    return lesson(**(rows or batch()))["loss"].item()


# ---- pairs


def test_pairs_are_read_plain_and_gzipped_and_only_short_ones(place, tmp_path):
    corpus = pairs_of(place)
    assert {split: len(read_pairs(data)) for split, data in corpus.parts.items()} == COUNTS
    assert read_pairs(corpus.parts["train"])[0] == ("The otter saw 2 rivers.", "La nutria vio 2 río.")
    long = json.dumps({"split": "train", "en": "one " * 7, "es": "uno"})
    packed = tmp_path / "other.jsonl.gz"
    wide = json.dumps({"split": "train", "en": "one", "es": "é" * 101})
    packed.write_bytes(gzip.compress("\n".join([*lines(), "", long, wide]).encode()))
    assert pairs_of(packed).parts == corpus.parts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"not json", "line 1"),
        (b'{"split": "train", "en": "a"}', "'es'"),
        (b"[1]", "line 1"),
        (b'{"split": "dev", "en": "a", "es": "b"}', "train, valid or test"),
        (b'{"split": "train", "en": 1, "es": "b"}', "text"),
        (b"", "0 train pairs"),
    ],
)
def test_what_are_no_pairs_is_said(tmp_path, content, said):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=said):
        pairs_of(file)


def test_a_damaged_archive_and_nothing_at_all(tmp_path):
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(b"abc" * 100)[:-12])
    with pytest.raises(OptionError, match="cannot be read"):
        pairs_of(tmp_path)
    with pytest.raises(OptionError, match="holds no sentence pairs"):
        pairs_of(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="--text"):
        pairs_of(None)


def test_without_sacrebleu_it_says_what_to_install(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"coterie\[study\]"):
        study.gather(place)


def test_batches_are_padded_alike_and_depend_on_the_seed_alone(place):
    pairs = read_pairs(pairs_of(place).parts["train"])
    tokenizer = vocabulary(pairs)
    encoded = Encoded.of(pairs, tokenizer)
    assert tokenizer.decode(encoded.target[3][:-1]) == pairs[3][1]
    data = PairBatches(encoded, tokenizer.pad_token_id, batch=16, batches=7, seed=4)
    assert len(data) == 7 * 16
    seen = []
    for start in range(0, len(data), 16):
        items = [data[index] for index in range(start, start + 16)]
        rows = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        assert (rows["attention_mask"].sum(1).max(), rows["labels"].ne(-100).sum(1).max()) == (
            rows["input_ids"].shape[1],
            rows["labels"].shape[1],
        )
        assert torch.equal(rows["input_ids"] == tokenizer.pad_token_id, rows["attention_mask"] == 0)
        seen += [tuple(item["labels"][item["labels"] != -100].tolist()) for item in items]
    assert sorted(seen[:80]) == sorted(map(tuple, encoded.target))  # a pass has every pair once
    again, other = (PairBatches(encoded, 1, batch=16, batches=7, seed=seed) for seed in (4, 5))
    assert all(torch.equal(again[n]["labels"], data[n]["labels"]) for n in range(len(data)))
    assert any(not torch.equal(other[n]["labels"], data[n]["labels"]) for n in range(16))


# ---- the model and its loss


def test_experts_are_in_every_second_layer_of_either_side():
    model, roll = small(draw="batch")
    with torch.no_grad():
        model(**batch(), use_cache=False)
    assert list(roll.routings) == ["encoder.0", "decoder.0"]
    assert roll.routings["encoder.0"].num_items == 12
    one, other = (small(num_experts=count)[0].state_dict() for count in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one if "fc1.moe" not in name)


def test_a_pass_draws_for_the_whole_batch_and_passes_draw_apart():
    model, roll = small(draw="batch")
    lesson, pairs = Lesson(model, roll, alpha=1.0, balance=0.0), set()
    kept = []
    for side in (model.model.encoder, model.model.decoder):
        side.layers[0].fc1.register_forward_hook(lambda module, args, output: kept.append(roll.routings[module.site]))
    for _ in range(16):
        kept.clear()
        lesson(**batch())
        for routing in kept:
            first, second = routing.chosen.chunk(2)
            drawn = [set(rows[rows < 2].tolist()) for rows in (first, second)]  # padding draws nothing
            assert all(len(one) == 1 for one in drawn)
            pairs.add((*drawn[0], *drawn[1]))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert lesson.step == 16


def test_the_loss_of_two_passes_is_half_the_published_one():
    model, roll = small(draw="batch")
    model.eval()  # without dropout, so that both passes can be computed apart
    labels = batch()["labels"]
    roll.base = replace(roll.base, seed=7)
    plain, held = (loss_of(Lesson(model, roll, alpha=alpha, balance=0.0)) for alpha in (0.0, 3.0))
    passes = []
    for number in (0, 1):
        roll.passes, roll.masks = 1, {"encoder": batch()["attention_mask"], "decoder": labels != -100}
        logits = _logits_of_pass(model, roll, number)
        passes.append(logits[labels != -100].log_softmax(-1))
    wanted = labels[labels != -100]
    costs = [-one.gather(1, wanted[:, None]).mean() for one in passes]
    a, b = passes
    agreement = ((a.exp() - b.exp()) * (a - b)).sum(-1).mean() / 2
    assert agreement > 1e-3  # they drew different experts
    assert plain == pytest.approx(float(sum(costs) / 2), rel=1e-5)
    assert held == pytest.approx(float((costs[0] + costs[1] + 3.0 * agreement) / 2), rel=1e-5)


def _logits_of_pass(model, roll, number):
    """One pass alone, drawing what it draws as the n-th of two."""
    original = roll.context
    roll.context = lambda *where: replace(original(*where), pass_id=number)
    try:
        with torch.no_grad():
            return model(**batch(), use_cache=False).logits
    finally:
        del roll.context


def test_padding_changes_neither_loss_nor_balance():
    for router, options, alpha in (("thor", {"draw": "batch"}, 1.0), ("top_k", {"k": 1, "renormalise": False}, None)):
        model, roll = small(router, **options)
        model.eval()
        lesson = Lesson(model, roll, alpha=alpha, balance=0.0 if alpha else 1.0)
        wider = {name: torch.nn.functional.pad(each, (0, 3), value=fill) for (name, each), fill in zip(
            batch().items(), (1, 0, -100), strict=True
        )}  # fmt: skip
        assert loss_of(lesson, wider) == pytest.approx(loss_of(lesson), rel=1e-5)


def test_balance_is_learned_from():
    model, roll = small("top_k", 4, k=1, renormalise=False)
    model.eval()
    free, held = (loss_of(Lesson(model, roll, alpha=None, balance=each)) for each in (0.0, 1.0))
    assert held - free > 0.5  # near 1 at balance


def test_translations_do_not_depend_on_their_batch(place):
    tokenizer = vocabulary(read_pairs(pairs_of(place).parts["train"]))
    model, roll = translator(
        0, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, num_experts=2, router="thor", options={}
    )
    model.eval()
    sentences = ["The otter saw 2 rivers.", "The mouse saw 3 woods.", "The heron saw 4 towns."]
    for draw in ("sequence", "token", "average"):
        roll.base = replace(roll.base, overrides={"draw": draw})
        whole, single = (study.translate(model, roll, tokenizer, sentences, size) for size in (3, 1))
        assert whole == single
        assert len(whole) == 3


# ---- the study


def test_claims_are_reported_and_need_both_seeds():
    good = {study.THOR: {"BLEU": 12.0}, study.SWITCH: {"BLEU": 11.0}, study.DENSE: {"BLEU": 11.5}}
    assert not any(claim.gated for claim in study.CLAIMS)
    for claim in study.CLAIMS:
        assert judge(claim, {0: good, 1: good}).verdict == "holds"
        assert judge(claim, {0: good}).verdict == "not shown"
        assert judge(claim, {0: good, 1: {**good, study.THOR: {"BLEU": 11.0}}}).verdict == "does not hold"


def test_every_arm_runs(place, tmp_path):
    study.gather(place).save(tmp_path / "text")
    for arm in study.ARMS:
        where = tmp_path / arm.name
        where.mkdir()
        metrics = study.run(Bench(arm, 0, where, tmp_path / "text", scale=0.002))
        assert 0 <= metrics["BLEU"] <= 100
        assert 0 <= metrics["chrF"] <= 100
        assert 3 < metrics["loss"] < 12
        assert ("BLEU by token" in metrics) == (arm.name == study.THOR)
        assert all(len(example) == 3 for example in metrics["examples"])
