"""Statistics of a model on a calibration text, in one file: the model runs over it under a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import BudgetError, OptionError, PromptError, UnsupportedError
from coterie.jobs.budget import default_memory
from coterie.jobs.load import context_of, load
from coterie.jobs.locate import locate
from coterie.jobs.output import check_output
from coterie.jobs.reading import Text, open_texts
from coterie.jobs.sheet import Sheet
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.collect import SAMPLE, Collection, collect
from coterie.models.compat import quiet, takes, text_inputs
from coterie.models.families import check_has_experts
from coterie.models.feed_forwards import ChannelCollection, collect_channels, find_ffns
from coterie.models.identity import identity
from coterie.models.prompts import Prompts
from coterie.models.shards import read_config_json, read_ranges
from coterie.models.statistics import Statistics
from coterie.ranges import TensorRange
from coterie.units import format_bytes, parse_bytes

__all__ = ["Calibration", "collect_statistics"]

TOKENS = 16384
# tokens of a sequence, and of a forward: experts that are not resident are read once for each forward
_WINDOW, _FORWARD = 512, 4096
# fewer tokens say nothing about a channel, however few experts there are
_LEAST = 64

Say = Callable[[str], None]
Texts = Sequence[str | Path] | Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `collect_statistics` made.

    Attributes:
        statistics: also in the file.
        texts: what was read, in words.
        budget: in words.
        hit_rate, bytes_read: of the store; None of a dense model, which is resident whole.
        seconds: it took, loading included.
    """

    statistics: Statistics
    texts: tuple[str, ...]
    budget: str
    hit_rate: float | None
    bytes_read: int | None
    seconds: float

    def sheet(self) -> Sheet:
        """For people."""
        from coterie.jobs.statistics_sheet import sheet_of

        return sheet_of(self)

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def as_record(self) -> dict[str, Any]:
        """The summary, ready for JSON; the tensors are in the file."""
        from coterie.jobs.statistics_sheet import record_of

        return record_of(self)


@dataclass(frozen=True, eq=False)
class _Dense:
    """A checkpoint without experts, opened."""

    path: Path
    ranges: Mapping[str, TensorRange]
    context_length: int | None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.ranges.values())


@dataclass(frozen=True, eq=False)
class _Part:
    """A text with the domain it stands for, empty where none."""

    domain: str
    text: Text


def collect_statistics(
    model: str | Path | Checkpoint,
    texts: Texts,
    out: str | Path | None = None,
    memory: str | int | None = None,
    *,
    domains: Mapping[str, Sequence[str | Path]] | None = None,
    tokens: int = TOKENS,
    context: int | None = None,
    sample: int = SAMPLE,
    gradients: bool = False,
    seed: int = 0,
    slots: int | None = None,
    revision: str | None = None,
    say: Say = lambda text: None,
) -> Calibration:
    """Run ``model`` over texts and keep what its experts, or a dense model's channels, did. Exact. Blocks.

    A model with experts runs from the tiered store, in ``memory``; the statistics do not depend on how many experts
    fit. Afterwards every expert is applied to a sample of hidden states, so that unused ones are known too. A dense
    model is resident whole.

    Args:
        model, revision: as of `coterie.load`; also a directory with a dense model.
        texts: UTF-8 files, or name -> text; may be empty where there are domains.
        out: where the statistics go; None: nowhere but into what is returned. What it held stays until the new file
            is whole.
        memory: as of `coterie.load`; what is collected is counted too.
        domains: name of a domain -> files, counted apart beside being counted together.
        tokens: of each text, at most.
        context: tokens of a sequence; default 512, or the model's limit.
        sample: hidden states of each layer that are kept.
        gradients: of a dense model, score channels by activation x gradient too; takes a backward pass.
        seed: of the choice of the sample.
        slots: fewer expert slots than the budget allows (for experiments).
        say: told what is being done.

    Raises:
        PromptError: a text is missing, empty or binary, or all of them together are too short.
        OptionError: a number out of range, ``out`` cannot be written, or gradients of experts are asked for.
        CheckpointError, UnsupportedError, BudgetError: as of `coterie.load`; or the model computes NaN.
    """
    began = time.monotonic()
    _check(tokens, sample, context, seed)
    if out is not None:
        check_output(out)
    checkpoint = _opened(model, revision)
    if gradients and isinstance(checkpoint, Checkpoint):
        raise OptionError(
            "Gradients are collected for dense models, which are resident whole; experts in a store have none. Leave "
            "--gradients out: mixtures of experts are scored by usage, output norm and REAP."
        )
    parts = _parts(checkpoint, texts, domains or {}, tokens)
    _check_length(parts, checkpoint)
    run = _Run(checkpoint, parts, memory, _window(checkpoint, parts, context), sample, seed, slots, say)
    found = run.experts() if isinstance(checkpoint, Checkpoint) else run.dense(gradients)
    about = {
        "model": str(model.path if isinstance(model, Checkpoint) else model), "seed": seed, "sample": sample,
        "family": str(read_config_json(checkpoint.path).get("model_type")), "window": run.window, "batch": run.batch,
        "texts": [{"name": part.text.name, "domain": part.domain, "tokens": len(part.text.ids)} for part in parts],
    }  # fmt: skip
    ours = Statistics(found.sites, found.ffns, identity(checkpoint), about)
    if out is not None:
        ours.save(out)
    shown = tuple(part.text.describe() + (f", domain {part.domain}" if part.domain else "") for part in parts)
    return Calibration(ours, shown, found.budget, found.hit_rate, found.bytes_read, time.monotonic() - began)


@dataclass(frozen=True, eq=False)
class _Found:
    sites: dict[str, Any]
    ffns: dict[str, Any]
    budget: str
    hit_rate: float | None = None
    bytes_read: int | None = None


class _Run:
    """The model over all texts, once."""

    def __init__(
        self, checkpoint: Checkpoint | _Dense, parts: Sequence[_Part], memory: str | int | None, window: int,
        sample: int, seed: int, slots: int | None, say: Say,
    ) -> None:  # fmt: skip
        self.checkpoint, self.parts, self.memory, self.window = checkpoint, parts, memory, window
        self.sample, self.seed, self.slots, self.say = sample, seed, slots, say
        self.batch = max(1, _FORWARD // window)
        self.batch = min(self.batch, max(len(part.text.ids) // window for part in parts) or 1)

    def experts(self) -> _Found:
        """From the store."""
        assert isinstance(self.checkpoint, Checkpoint)
        self.say("Loading")
        host = self._hosted(self.checkpoint)
        given: dict[str, Any] = {"logits_to_keep": 1} if takes(host, "logits_to_keep") else {}
        if takes(host, "use_cache"):
            given["use_cache"] = False
        try:
            with collect(host, sample=self.sample, seed=self.seed) as collection:
                for ids in self._pieces(collection):
                    host(input_ids=ids, **text_inputs(host, ids), **given)
                sites = collection.statistics(self._applying)
            stats, budget = host.coterie.stats(), host.coterie.budget.describe()
        finally:
            host.coterie.close()
        return _Found(sites, {}, budget, stats.hit_rate, stats.bytes_read)

    def dense(self, gradients: bool) -> _Found:
        """Resident."""
        assert isinstance(self.checkpoint, _Dense)
        dense = self.checkpoint
        _check_memory(dense, self.memory)
        self.say(f"Loading {format_bytes(dense.nbytes)}: a dense model is resident whole")
        model = _resident(dense.path)
        with collect_channels(model, sample=self.sample, seed=self.seed) as collection:
            for ids in self._pieces(collection):
                if gradients:
                    from coterie.training.saliency import add_saliency

                    add_saliency(model, collection, ids)
                else:
                    with torch.no_grad():
                        model(input_ids=ids, use_cache=False)
            ffns = collection.statistics()
        return _Found({}, ffns, f"{format_bytes(dense.nbytes)} of weights, all resident")

    def _pieces(self, collection: Collection | ChannelCollection) -> Iterator[Tensor]:
        """[B, N] tables of full windows, the domain set for each; a shorter rest is a table of its own."""
        total, done, began = sum(len(part.text.ids) for part in self.parts), 0, time.monotonic()
        for part in self.parts:
            collection.domain = part.domain
            for ids in _tables(part.text.ids, self.window, self.batch):
                left = (time.monotonic() - began) / done * (total - done) if done else None
                self.say(
                    f"Reading {part.text.name}: {done:,} of {total:,} tokens"
                    + ("" if left is None else f", about {left:.0f} s left")
                )
                yield ids
                done += ids.numel()

    def _applying(self, done: int, total: int) -> None:
        self.say(f"Applying every expert to the sample: layer {done + 1} of {total}")

    def _hosted(self, checkpoint: Checkpoint) -> Any:
        """The model, with as many sequences per forward as the budget has room for beside the statistics."""
        extra = _collected_bytes(checkpoint, len({part.domain for part in self.parts}), self.sample)
        total = default_memory() if self.memory is None else parse_bytes(self.memory)
        while True:
            try:
                return load(
                    checkpoint, max(1, total - extra), context=self.window, batch=self.batch, prefill=self.window,
                    slots=self.slots, compile=False,
                )  # fmt: skip
            except BudgetError as error:
                if self.batch == 1:
                    raise BudgetError(
                        f"Of {format_bytes(total)}, {format_bytes(extra)} are for what is collected. What is left for "
                        f"the model, {format_bytes(max(0, total - extra))}, is not enough. {error} Add "
                        f"{format_bytes(extra)} to that."
                    ) from error
                self.batch //= 2


def _check(tokens: int, sample: int, context: int | None, seed: int) -> None:
    if tokens < 2 or sample < 1 or seed < 0 or (context is not None and context < 2):
        raise OptionError(
            "Statistics need 2 tokens of each text or more, a context of 2 or more, a sample of 1 or more and a seed "
            f"of 0 or more, not {tokens}, {context}, {sample} and {seed}."
        )


def _opened(model: str | Path | Checkpoint, revision: str | None) -> Checkpoint | _Dense:
    """The checkpoint, with experts or without.

    Raises:
        UnsupportedError: its experts are stored as factors, which have no channels.
    """
    path = model.path if isinstance(model, Checkpoint) else locate(model, revision)
    raw = read_config_json(path)
    try:
        check_has_experts(raw, str(path))
    except UnsupportedError:
        config = raw.get("text_config", raw)
        return _Dense(path, read_ranges(path), config.get("max_position_embeddings", config.get("n_positions")))
    return model if isinstance(model, Checkpoint) else open_checkpoint(path)


def _parts(
    checkpoint: Checkpoint | _Dense, texts: Texts, domains: Mapping[str, Sequence[str | Path]], tokens: int
) -> list[_Part]:  # fmt: skip
    if "" in domains:
        raise OptionError("A domain has a name: --domain code=main.py")
    if not texts and not domains:
        raise PromptError("There is no text to read. Name at least one file: --text notes.txt")
    prompts = Prompts.of(checkpoint.path, checkpoint.context_length)
    parts = [_Part("", text) for text in (open_texts(texts, prompts, tokens) if texts else [])]
    for name, files in domains.items():
        parts += [_Part(name, text) for text in open_texts(files, prompts, tokens)]
    return parts


def _check_length(parts: Sequence[_Part], checkpoint: Checkpoint | _Dense) -> None:
    """Refuse texts whose statistics would be noise: fewer tokens than experts to tell apart."""
    routes = max(site.num_experts for site in checkpoint.sites) if isinstance(checkpoint, Checkpoint) else 0
    wanted = {"The calibration text": (max(_LEAST, 2 * routes), sum(len(part.text.ids) for part in parts))}
    for name in dict.fromkeys(part.domain for part in parts if part.domain):
        count = sum(len(part.text.ids) for part in parts if part.domain == name)
        wanted[f"The calibration text of the domain {name}"] = (_LEAST, count)
    for what, (least, found) in wanted.items():
        if found < least:
            why = f" to tell {routes} experts apart" if least > _LEAST else ""
            raise PromptError(
                f"{what} has {found} tokens; the statistics asked need at least {least}{why}. Give more text, or a "
                "larger --max-tokens."
            )


def _window(checkpoint: Checkpoint | _Dense, parts: Sequence[_Part], context: int | None) -> int:
    longest = max(len(part.text.ids) for part in parts)
    if isinstance(checkpoint, Checkpoint):
        return min(context_of(checkpoint, context or min(_WINDOW, checkpoint.context_length or _WINDOW)), longest)
    limit = checkpoint.context_length
    if context is not None and limit is not None and context > limit:
        raise OptionError(f"A context of {context} tokens is more than the model's {limit}. Give {limit} or less.")
    return min(context or _WINDOW, limit or _WINDOW, longest)


def _tables(ids: Tensor, window: int, batch: int) -> Iterator[Tensor]:
    """[B, N] tables; a last window of a single token, which foretells nothing, is left out."""
    whole = len(ids) // window * window
    if whole:
        yield from ids[:whole].view(-1, window).split(batch)
    if len(rest := ids[whole:]) > 1:
        yield rest[None]


def _collected_bytes(checkpoint: Checkpoint, domains: int, sample: int) -> int:
    """Sums of all layers, and the statistics made of them."""
    total = 0
    for site in checkpoint.sites:
        experts, width, inner = site.num_experts, site.shape.width, site.shape.inner
        sums = experts * (inner * (domains + 1) + 2 * width) * 4
        total += 2 * sums + 2 * sample * width * checkpoint.compute_dtype.itemsize + 2 * 8 * experts * experts
    return total


def _check_memory(dense: _Dense, memory: str | int | None) -> None:
    if memory is None:
        return
    given, need = parse_bytes(memory), dense.nbytes
    if given < need:
        raise BudgetError(
            f"--memory {memory} ({format_bytes(given)}) is below the weights of this model, {format_bytes(need)}: a "
            "dense model has no experts that could stay on disk, so all of it is resident. Give more than that."
        )


def _resident(path: Path) -> Any:
    """A dense model by transformers, on the CPU.

    Raises:
        UnsupportedError: transformers cannot load it, or its channels are not found.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        why = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UnsupportedError(f"transformers cannot load {path}: {why}. Check config.json and the weights.") from error
    if not find_ffns(model):
        raise UnsupportedError(
            f"{path} is a {type(model).__name__}, in which no feed-forward is recognised: its channels cannot be "
            "counted. Give a decoder such as Llama, Qwen or Mistral, or a mixture of experts."
        )
    return model.requires_grad_(False)
