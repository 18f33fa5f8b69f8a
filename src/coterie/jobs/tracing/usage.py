"""Which experts a text uses: the model run over it under a budget, its routes counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from coterie.errors import OptionError
from coterie.jobs.locate import locate
from coterie.jobs.output import write_output
from coterie.jobs.running.budget import Budget
from coterie.jobs.running.load import load
from coterie.jobs.sheet import Sheet
from coterie.jobs.tracing.load_balance import SiteUse, difference, site_uses
from coterie.jobs.tracing.reading import Passage, Text, open_texts, passages
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.prompts import Prompts

# tokens in one forward: logits of all of them are kept, so fewer than in generation
_PIECE = 128
_WINDOW = 1024


@dataclass(frozen=True, eq=False)
class TextUse:
    """One text: what was read of it, how surprising it was, and where its tokens went.

    ``perplexity`` is None of a model that labels tokens instead of foretelling them, or whose logits are no numbers.
    """

    text: Text
    perplexity: float | None
    sites: Sequence[SiteUse]

    @property
    def tokens(self) -> int:
        """Tokens that were routed."""
        return self.sites[0].tokens

    def as_record(self) -> dict[str, Any]:
        sites = [site.as_record() for site in self.sites]
        facts = {"name": self.text.name, "tokens": self.tokens, "bytes": self.text.nbytes, "cut": self.text.cut}
        return facts | {"perplexity": self.perplexity, "sites": sites}


@dataclass(frozen=True, eq=False)
class Usage:
    """What `usage` found. Exact: the budget changes no route.

    Attributes:
        model, family: as asked for, and its model_type.
        texts: one or more.
        budget: the model ran in.
        window: tokens after which reading began with an empty cache.
        hit_rate, bytes_read: of the store.
    """

    model: str
    family: str
    texts: Sequence[TextUse]
    budget: Budget
    window: int
    hit_rate: float
    bytes_read: int

    @cached_property
    def sites(self) -> list[SiteUse]:
        """All texts together."""
        return [reduce(SiteUse.__add__, same) for same in zip(*(text.sites for text in self.texts), strict=True)]

    @property
    def tokens(self) -> int:
        """Of all texts together."""
        return sum(text.tokens for text in self.texts)

    def differences(self) -> list[tuple[str, str, float]]:
        """Pairs of texts with the mean over sites of `coterie.jobs.tracing.load_balance.difference` of their loads."""
        return [
            (a.text.name, b.text.name, fmean(difference(x.load, y.load) for x, y in zip(a.sites, b.sites, strict=True)))
            for a, b in combinations(self.texts, 2)
        ]

    def difference_within(self) -> float:
        """The same between alternating stretches of one text, mean over texts: what chance alone makes of it."""
        return fmean(difference(*site.halves) for text in self.texts for site in text.sites)

    def as_record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "model": self.model, "family": self.family, "window": self.window, "tokens": self.tokens,
            "texts": [text.as_record() for text in self.texts], "sites": [site.as_record() for site in self.sites],
            "differences": [{"texts": [a, b], "difference": value} for a, b, value in self.differences()],
            "difference_within": self.difference_within(), "memory": self.budget.as_record(),
            "store": {"hit_rate": self.hit_rate, "bytes_read": self.bytes_read},
        }  # fmt: skip

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def sheet(self) -> Sheet:
        """For people."""
        from coterie.jobs.tracing.usage_sheet import sheet_of

        return sheet_of(self)

    def html(self) -> str:
        """A page with heat maps, histograms and tables: one file, no scripts, no network, light and dark."""
        from coterie.jobs.tracing.usage_page import page

        return page(self)

    def write_html(self, path: str | Path) -> None:
        """Write `html` to ``path``, in one step.

        Raises:
            OptionError: the file cannot be written.
        """
        write_output(path, self.html())

    def write_png(self, path: str | Path) -> None:
        """Write the heat maps to ``path`` as a PNG, in one step.

        Raises:
            OptionError: the file cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        from coterie.jobs.tracing.usage_png import png

        write_output(path, png(self))


def usage(
    model: str | Path | Checkpoint,
    texts: Sequence[str | Path] | Mapping[str, str],
    memory: str | int | None = None,
    *,
    tokens: int = 4096,
    context: int | None = None,
    policy: str = "stale-first",
    prefetch: str = "none",
    revision: str | None = None,
    name: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Usage:
    """Run ``model`` over ``texts`` in ``memory`` and count which experts each layer used. Exact. Blocks.

    Args:
        model: as of `coterie.load`.
        texts: files, or name -> text.
        memory: as of `coterie.load`; the routes that are kept while a text is read come on top of it.
        tokens: of each text, at most.
        context: tokens after which reading goes on with an empty cache; default 1024 or the model's limit.
        policy, prefetch, revision: as of `coterie.load`.
        name: of the model in what is shown; default as it was asked for.
        say: told what is being done.

    Raises:
        PromptError: a text is missing, binary or empty.
        OptionError: ``tokens`` or ``context`` is below 2, or ``context`` above the model's.
        CheckpointError, UnsupportedError, BudgetError: as of `coterie.load`.
    """
    for option, value in (("tokens", tokens), ("context", 2 if context is None else context)):
        if value < 2:
            raise OptionError(f"{option} must be 2 or more, not {value}: nothing can be foretold from less.")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    prompts = Prompts.of(checkpoint.path, checkpoint.context_length)
    opened = open_texts(texts, prompts, tokens)
    window = min(context or min(_WINDOW, checkpoint.context_length or _WINDOW), max(len(t.ids) for t in opened))
    say("Loading the model")
    piece = min(_PIECE, window)
    host = load(checkpoint, memory, context=window, prefill=piece, all_logits=True, policy=policy, prefetch=prefetch)
    try:
        used = [_read(host, text, window, say) for text in opened]
        stats = host.coterie.stats()
        shown = name or str(checkpoint.path if isinstance(model, Checkpoint) else model)
        family = str(checkpoint.config.model_type)
        return Usage(shown, family, used, host.coterie.budget, window, stats.hit_rate, stats.bytes_read)
    finally:
        host.coterie.close()


def _read(host: Any, text: Text, window: int, say: Callable[[str], None]) -> TextUse:
    layers = {site.name: site.layer for site in host.coterie.checkpoint.sites}
    total, began = len(text.ids), time.monotonic()

    def tell(done: int) -> None:
        left = (time.monotonic() - began) / done * (total - done)
        say(f"Reading {text.name}: {done:,} of {total:,} tokens, about {left:.0f} s left")

    read: list[Passage] = []
    counted: list[list[SiteUse]] = []
    for passage in passages(host, text.ids, window, tell):
        counted.append(site_uses(passage.plan, layers))
        read.append(passage)
    surprise, foretold = sum(p.surprise for p in read), sum(p.foretold for p in read)
    sites = [reduce(SiteUse.__add__, same) for same in zip(*counted, strict=True)]
    return TextUse(text, _perplexity(surprise / foretold), sites)


def _perplexity(surprise: float) -> float | None:
    return math.exp(min(surprise, 700.0)) if math.isfinite(surprise) else None
