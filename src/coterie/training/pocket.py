"""The pocket model: a small OLMoE, trained on a few domains of text, small enough to ship in the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.compat import quiet
from coterie.training.card import finish, read_sources
from coterie.training.measure import cross_entropy
from coterie.training.places import check_places, finishing
from coterie.training.text import SPLITS, Corpus, read_domains
from coterie.training.tokens import token_ids, train_tokenizer
from coterie.training.trainer import LOG, Options, Progress, language_trainer, train_from
from coterie.training.windows import Windows

SHAPE: Mapping[str, Any] = {
    "hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 3,
    "num_key_value_heads": 1, "num_experts": 16, "num_experts_per_tok": 4, "max_position_embeddings": 1024,
    "norm_topk_prob": True, "tie_word_embeddings": True, "router_aux_loss_coef": 0.01,
}  # fmt: skip
STEPS, DECAY = 5900, 2178 / 5900  # those of the model that ships
VALID_WINDOWS = 32


@dataclass(frozen=True)
class PocketRecipe:
    """All that makes the pocket model besides its text.

    Attributes:
        vocabulary: entries of the tokenizer.
        length: tokens of a window.
        evenness: see `Windows`.
        shape: fields of OlmoeConfig.
        options: how to train.
        measure_every: steps between measurements on the validation text.
    """

    vocabulary: int = 4096
    length: int = 256
    evenness: float = 0.8
    shape: Mapping[str, Any] = field(default_factory=lambda: SHAPE)
    options: Options = field(default_factory=lambda: Options(STEPS, decay=DECAY))
    measure_every: int = 250


def train_pocket(
    out: Path,
    text: Path,
    *,
    domains: Sequence[str] | None = None,
    sources: Path | None = None,
    recipe: PocketRecipe | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Train a pocket model and save it in ``out``: bf16 weights, tokenizer, model card, measurements. Blocks.

    Checkpoints and the log lie in ``out`` + ``.work`` meanwhile; ``out`` appears when all is done. On one machine,
    with one number of threads, the same text, recipe and versions give the same weights, stopped and resumed or not.
    Sets the seeds of random, numpy and torch.

    Args:
        out: a directory that does not exist yet.
        text: where ``<domain>.<split>.txt[.gz]`` lie.
        domains: which of them; default all, in name order.
        sources: a JSON file that says where the text is from, for the card; see `read_sources`.
        recipe: shape and options.
        resume: go on from the last complete checkpoint; the steps may differ from before.
        progress: called as (step, steps, loss) after every step.

    Raises:
        OptionError: ``out`` exists, there is nothing to resume, or the text or ``sources`` is unusable.
        TrainingError: the loss is not finite.
        MissingExtraError: accelerate is not installed.
    """
    recipe, work = recipe or PocketRecipe(), out.with_name(out.name + ".work")
    check_places(out, work, resume)
    corpus = read_domains(text, domains)
    origin = read_sources(sources, list(corpus))
    tokenizer = train_tokenizer((splits["train"] for splits in corpus.values()), recipe.vocabulary)
    streams = encode(corpus, tokenizer)
    _check_size(streams, recipe.length)
    work.mkdir(parents=True, exist_ok=True)
    with torch.enable_grad():
        model = _train(tokenizer, streams, recipe, work, resume, progress)
    with finishing(work, out) as scratch:
        save(model, tokenizer, scratch)
        finish(scratch, work, corpus, streams, recipe, origin)


def encode(corpus: Corpus, tokenizer: Any) -> dict[str, dict[str, Tensor]]:
    """split -> domain -> [N] int64 ids."""
    return {split: {domain: token_ids(corpus[domain][split], tokenizer) for domain in corpus} for split in SPLITS}


def save(model: Any, tokenizer: Any, path: Path) -> None:
    """Write the checkpoint that is shipped: bf16 weights, tokenizer and how to sample. The model becomes bf16."""
    from transformers import GenerationConfig

    model.config.output_router_logits = False
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, top_k=0, repetition_penalty=1.1,
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id,
    )  # fmt: skip
    with quiet():
        model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _check_size(streams: Mapping[str, Mapping[str, Tensor]], length: int) -> None:
    for split, domains in streams.items():
        for domain, ids in domains.items():
            if len(ids) < 2 * length:
                raise OptionError(
                    f"The {split} text of {domain!r} has {len(ids)} tokens; it must have {2 * length}. Give more."
                )


def _train(
    tokenizer: Any, streams: Mapping[str, Mapping[str, Tensor]], recipe: PocketRecipe, work: Path, resume: bool,
    progress: Progress | None,
) -> Any:  # fmt: skip
    from coterie.training.callbacks import Log, Measure

    options = recipe.options
    torch.manual_seed(options.seed)
    model = _model(tokenizer, recipe)
    windows = Windows(
        streams["train"], recipe.length, options.steps * options.batch, seed=options.seed, evenness=recipe.evenness
    )

    measure = Measure(_losses_on(streams["valid"], recipe.length), recipe.measure_every, Log(work / LOG))
    trainer = language_trainer(model, windows, options, work, progress=progress, callbacks=[measure])
    train_from(trainer, resume=resume)
    return model


def _losses_on(valid: Mapping[str, Tensor], length: int) -> Callable[[Any], dict[str, float]]:
    """A quick look at unseen text: the first windows of each domain, side by side."""
    slices = {f"valid_{domain}": ids[: VALID_WINDOWS * length] for domain, ids in valid.items()}
    return lambda model: {name: cross_entropy(model, ids, length=length, stride=length) for name, ids in slices.items()}


def _model(tokenizer: Any, recipe: PocketRecipe) -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        **recipe.shape, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, output_router_logits=True,
    )  # fmt: skip
    return OlmoeForCausalLM(config).train()


def recipe_for(steps: int | None = None, seed: int = 0) -> PocketRecipe:
    """The pocket model's recipe with another number of steps or another seed."""
    return PocketRecipe(options=Options(STEPS if steps is None else steps, seed=seed, decay=DECAY))
