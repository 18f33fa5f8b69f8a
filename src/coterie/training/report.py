"""What is measured once the pocket model is trained; kept beside it as JSON, so that its card and tests can read it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.training.measure import chi_square, cross_entropy, expert_histograms, shuffled_p
from coterie.training.text import Corpus
from coterie.training.trainer import read_log, seconds_spent
from coterie.training.trigram import Trigram
from coterie.training.writing import continue_text, known_share, most_repeated, words_of

if TYPE_CHECKING:
    from coterie.training.pocket import PocketRecipe

SAMPLE = 6000  # characters of each test text that are shipped, for checks without the text itself
PROMPT_WORDS, NEW_TOKENS, WINDOW = 12, 200, 64

Streams = Mapping[str, Mapping[str, Tensor]]


def judge(
    model: Any, tokenizer: Any, corpus: Corpus, streams: Streams, samples: Mapping[str, str],
    vocabulary: frozenset[str], length: int,
) -> dict[str, Any]:  # fmt: skip
    """Perplexity against trigrams, routing by domain, and generated text, each per domain. Blocks for minutes.

    Args:
        model: float32, in eval mode.
        tokenizer: its tokenizer.
        corpus, streams: the texts and their ids, by domain and by split.
        samples: domain -> the text that is shipped.
        vocabulary: the words of the train text.
        length: tokens of context that the model is judged with.
    """
    return {
        "perplexity": perplexities(model, corpus, streams, samples, tokenizer, length),
        "routing": routing(model, {domain: ids[: 256 * WINDOW] for domain, ids in streams["test"].items()}),
        "writing": writing(model, tokenizer, corpus, vocabulary),
    }


def perplexities(
    model: Any, corpus: Corpus, streams: Streams, samples: Mapping[str, str], tokenizer: Any, length: int
) -> dict[str, dict[str, float]]:
    """Per domain, on its test text and on its sample: the model, and trigrams of all train text and of the domain's.

    Both trigram models read the model's own tokens. ``trigram`` is the better of the two.
    """
    pooled = Trigram(list(streams["train"].values()), len(tokenizer))
    table = {}
    for domain, test in streams["test"].items():
        own = Trigram([streams["train"][domain]], len(tokenizer))
        sample = torch.tensor(tokenizer(samples[domain])["input_ids"])
        nats = cross_entropy(model, test, length=length)
        table[domain] = {
            "model": math.exp(nats),
            "trigram": math.exp(min(pooled.cross_entropy(test), own.cross_entropy(test))),
            "trigram_all_text": math.exp(pooled.cross_entropy(test)),
            "trigram_own_text": math.exp(own.cross_entropy(test)),
            "bits_per_byte": nats * (len(test) - 1) / math.log(2) / len(corpus[domain]["test"].encode()),
            "sample_model": math.exp(cross_entropy(model, sample, length=length)),
            "sample_trigram": math.exp(min(pooled.cross_entropy(sample), own.cross_entropy(sample))),
        }
    return table


def routing(model: Any, domains: Mapping[str, Tensor]) -> dict[str, Any]:
    """Per layer: does the choice of experts differ between the domains? Pearson on tokens, and shuffled windows."""
    counts = {domain: expert_histograms(model, ids, length=WINDOW) for domain, ids in domains.items()}
    layers = []
    for layer in range(model.config.num_hidden_layers):
        groups = [count[layer] for count in counts.values()]
        statistic, freedom, p = chi_square(torch.stack([group.sum(0) for group in groups]))
        layers.append({"chi_square": statistic, "freedom": freedom, "p": p, "p_windows": shuffled_p(groups)})
    shares = {
        domain: [[round(float(share), 4) for share in layer.sum(0) / layer.sum()] for layer in count]
        for domain, count in counts.items()
    }
    return {"layers": layers, "shares": shares}


def writing(model: Any, tokenizer: Any, corpus: Corpus, vocabulary: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Per domain: 200 tokens that continue the first words of its test text, and what is wrong with them."""
    texts = {}
    for domain, splits in corpus.items():
        prompt = " ".join(splits["test"].split()[:PROMPT_WORDS])
        text = continue_text(model, tokenizer, prompt, new_tokens=NEW_TOKENS)
        texts[domain] = {
            "prompt": prompt, "text": text, "words": len(words_of(text)),
            "known": known_share(text, vocabulary), "most_repeated": most_repeated(text),
        }  # fmt: skip
    return texts


def history(work: Path, recipe: PocketRecipe) -> dict[str, Any]:
    """The loss of the run, thinned to some hundred points, and what it cost."""
    log = read_log(work)
    losses = [(record["step"], round(record["loss"], 4)) for record in log if "loss" in record]
    every = max(1, len(losses) // 300)
    valid = [
        {name: round(value, 4) for name, value in record.items() if name == "step" or name.startswith("valid_")}
        for record in log
        if any(name.startswith("valid_") for name in record)
    ]
    plans = [
        (record["step"], record["planned_steps"], record["planned_decay_steps"])
        for record in log
        if "planned_steps" in record
    ]
    tokens = recipe.options.steps * recipe.options.batch * recipe.length
    return {
        "tokens_seen": tokens, "hours": round(seconds_spent(work) / 3600, 2), "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%d"), "plans": plans, "train": losses[every - 1 :: every], "valid": valid,
    }  # fmt: skip
