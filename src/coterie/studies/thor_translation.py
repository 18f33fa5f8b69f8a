"""THOR on translation, the task of its paper, at the size of a laptop: reported, nothing stands or falls with it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coterie.errors import MissingExtraError
from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.corpus import Corpus
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.studies.translation_model import Lesson, Roll, translator
from coterie.studies.translation_text import Encoded, PairBatches, padded, pairs_of, read_pairs, vocabulary
from coterie.training import Options, language_trainer, train_from

ONE_PASS, TWO_PASSES, BATCH = 3000, 1500, 32  # steps of equal cost, pairs of a step
RATE, WARMUP = 2e-3, 100
ALPHA, BALANCE, SENTENCES, LONGEST = 5.0, 0.01, 500, 24
THOR, SWITCH, DENSE = "THOR, alpha 5", "Switch", "dense"
DRAWS = {"BLEU": "sequence", "BLEU by token": "token", "BLEU of the average": "average"}


def gather(given: Path | None) -> Corpus:
    """Sentence pairs; see `pairs_of`.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise MissingExtraError("sacrebleu", extra="study")
    return pairs_of(given)


def run(bench: Bench) -> Metrics:
    """Train one arm and translate unseen sentences."""
    options = bench.arm.options
    parts = {split: read_pairs(data) for split, data in bench.corpus.parts.items()}
    tokenizer = vocabulary(parts["train"])
    model, roll = translator(
        bench.seed, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id,
        num_experts=options["experts"], router=options["router"], options=options["with"],
    )  # fmt: skip
    roll.base = replace(roll.base, seed=bench.seed)
    lesson = Lesson(model, roll, alpha=options.get("alpha"), balance=options.get("balance", 0.0))
    _train(bench, lesson, PairBatches(
        Encoded.of(parts["train"], tokenizer), tokenizer.pad_token_id, batch=BATCH, batches=bench.steps, seed=bench.seed
    ))  # fmt: skip
    unseen = parts["test"][-bench.scaled(SENTENCES, 8) :]  # the first ones were seen while the setting was chosen
    metrics: dict[str, Any] = {"loss": _loss(lesson, Encoded.of(parts["valid"], tokenizer), tokenizer.pad_token_id)}
    for metric, draw in DRAWS.items() if options["router"] == "thor" else [("BLEU", None)]:
        roll.base = replace(roll.base, training=False, overrides={} if draw is None else {"draw": draw})
        translations = translate(model, roll, tokenizer, [source for source, _ in unseen])
        metrics |= _scores(metric, translations, [target for _, target in unseen])
    metrics["examples"] = [[*unseen[n], translations[n]] for n in range(min(5, len(unseen)))]
    return metrics


def _train(bench: Bench, lesson: Lesson, data: PairBatches) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options = Options(
        steps=bench.steps, batch=BATCH, rate=RATE, warmup=WARMUP, decay=1.0, decay_shape="cosine", weight_decay=0.01,
        clip=1.0, seed=bench.seed, save_every=0, log_every=max(1, bench.steps // 20),
    )  # fmt: skip
    work = bench.place / "training"
    work.mkdir(parents=True, exist_ok=True)
    train_from(language_trainer(lesson, data, options, work, progress=bench.progress), resume=False)
    lesson.eval()


@torch.inference_mode()
def _loss(lesson: Lesson, pairs: Encoded, pad: int) -> float:
    """Nats per token of a target, each sequence with a draw of its own where draws are made."""
    total, count, roll = 0.0, 0, lesson.roll
    drawn = {"draw": "sequence"} if lesson.alpha is not None else {}
    for first in range(0, len(pairs.target), BATCH):
        source, mask = padded(pairs.source[first : first + BATCH], pad)
        labels, _ = padded(pairs.target[first : first + BATCH], -100)
        roll.passes, roll.first = 1, first
        roll.base = replace(roll.base, training=False, overrides=drawn)
        tokens = int((labels != -100).sum())
        total += tokens * float(
            lesson.model(input_ids=source, attention_mask=mask, labels=labels, use_cache=False).loss
        )
        count += tokens
    return total / count


@torch.inference_mode()
def translate(model: Any, roll: Roll, tokenizer: Any, sentences: Sequence[str], batch: int = 100) -> list[str]:
    """Greedy translations. Without a cache, so that every position is counted from the start of its sentence."""
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(sentences))["input_ids"]]
    translations: list[str] = []
    for first in range(0, len(ids), batch):
        source, mask = padded(ids[first : first + batch], tokenizer.pad_token_id)
        roll.passes, roll.first = 1, first
        found = model.generate(
            input_ids=source, attention_mask=mask, max_new_tokens=LONGEST, num_beams=1, do_sample=False, use_cache=False
        )
        translations += tokenizer.batch_decode(found, skip_special_tokens=True)
    return translations


def _scores(metric: str, translations: Sequence[str], references: Sequence[str]) -> Metrics:
    from sacrebleu import corpus_bleu, corpus_chrf

    scores = {metric: corpus_bleu(list(translations), [list(references)]).score}
    if metric == "BLEU":
        scores["chrF"] = corpus_chrf(list(translations), [list(references)]).score
    return scores


ARMS = (
    Arm(THOR, "two experts of 512, one drawn per layer and pass; alpha 5", TWO_PASSES,
        {"router": "thor", "experts": 2, "with": {"k": 1, "draw": "batch"}, "alpha": ALPHA}),
    Arm(SWITCH, f"the better of two experts by a learned router, balance {BALANCE}", ONE_PASS,
        {"router": "top_k", "experts": 2, "with": {"k": 1, "renormalise": False}, "balance": BALANCE}),
    Arm(DENSE, "one expert", ONE_PASS, {"router": "top_k", "experts": 1, "with": {"k": 1, "renormalise": True}}),
)  # fmt: skip


def _against(other: str) -> Callable[[Arms], Numbers]:
    def numbers(arms: Arms) -> Numbers:
        mine, theirs = arms[THOR]["BLEU"], arms[other]["BLEU"]
        return {"THOR": mine, other: theirs, "difference": mine - theirs}

    return numbers


CLAIMS = (
    Claim("a", "THOR has more BLEU than Switch at equal compute, in 2 of 2 seeds.",
          _against(SWITCH), each(lambda n: n["difference"] > 0), gated=False, seeds=2),
    Claim("b", "THOR has more BLEU than the dense twin at equal compute, in 2 of 2 seeds.",
          _against(DENSE), each(lambda n: n["difference"] > 0), gated=False, seeds=2),
)  # fmt: skip

STUDY = Study(
    name="thor-translation",
    paper="Taming Sparsely Activated Transformer with Stochastic Experts (arXiv 2110.04260), on translation",
    question="Trained on few sentence pairs, experts drawn at random translate better than a learned router.",
    setting="Encoder-decoder of 2 + 2 post-norm layers of width 128 with one shared embedding of 2000 subwords, "
    "experts of 512 in the first layer of either side, dropout 0.1, 32 pairs a step, 1500 steps of two passes or 3000 "
    "of one, AdamW 2e-3 cosine after 100 steps, no label smoothing. Greedy translations of 500 unseen sentences of at "
    "most 6 words, sacreBLEU 13a; THOR draws an expert per sentence and layer.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column("BLEU", "BLEU", ".1f"), Column("BLEU by token", "per token", ".1f"),
        Column("BLEU of the average", "average", ".1f"), Column("chrF", "chrF", ".1f"), Column("loss", "nats/token"),
    ),
    run=run,
    gather=gather,
    seeds=(0, 1),
)  # fmt: skip
