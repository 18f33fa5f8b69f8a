"""Made-up routes: which experts each layer of each step uses.

A trace is ``trace[step][layer]``, the distinct experts ascending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.errors import OptionError
from coterie.store.blob import Key

Trace = Sequence[Sequence[tuple[int, ...]]]


def uniform(steps: int, layers: int, num_experts: int, top_k: int, tokens: int = 1, seed: int = 0) -> Trace:
    """Every token draws ``top_k`` distinct experts anew in every step and layer: no locality at all."""
    return sticky(steps, layers, num_experts, top_k, tokens, stay=0.0, zipf=0.0, seed=seed)


def sticky(
    steps: int,
    layers: int,
    num_experts: int,
    top_k: int,
    tokens: int = 1,
    *,
    stay: float = 0.6,
    zipf: float = 0.8,
    together: bool = True,
    seed: int = 0,
) -> Trace:
    """Routes with locality, as decoding shows it.

    Args:
        stay: probability that a token keeps its experts of a layer from one step to the next.
        zipf: popularity of an expert falls as rank ** -zipf; ranks are shuffled in each layer.
        together: a token keeps or draws all its experts of a layer at once; False lets each stay or
            change for itself, so that changes are spread evenly.
        seed: of the draws.

    Raises:
        OptionError: more choices than experts.
    """
    if not 1 <= top_k <= num_experts:
        raise OptionError(f"top_k must be in 1..{num_experts}, the number of experts, found {top_k}.")
    random = np.random.default_rng(seed)
    popularity = np.arange(1, num_experts + 1, dtype=np.float64) ** -zipf
    log_odds = np.stack([np.log(random.permutation(popularity)) for _ in range(layers)])  # [L, E]
    chosen = np.zeros((layers, tokens, top_k), dtype=np.int64)
    trace = []
    for step in range(steps):
        # the k largest of log-odds plus Gumbel noise are k draws without replacement
        noisy = log_odds[:, None] + random.gumbel(size=(layers, tokens, num_experts))
        kept = random.random((layers, tokens, 1 if together else top_k)) < (stay if step else 0.0)
        held = np.take_along_axis(noisy, chosen, axis=-1)
        np.put_along_axis(noisy, chosen, np.where(kept, np.inf, held), axis=-1)
        chosen = np.argsort(-noisy, axis=-1, kind="stable")[..., :top_k]
        trace.append([tuple(np.unique(row).tolist()) for row in chosen])
    return trace


def drawn(steps: int, rates: Sequence[float], tokens: int = 1, seed: int = 0) -> list[tuple[int, ...]]:
    """One layer's experts of each step, every token's drawn anew so that each expert has its rate exactly.

    Systematic sampling along a shuffled row: a token has as many experts as the rates add up to, one more or less by
    lot where that is no whole number.

    Args:
        rates: [E] probability that a token uses the expert, 0 to 1.
        tokens: of a step.
        seed: of the draws.

    Raises:
        OptionError: a rate is no probability.
    """
    chances = np.asarray(rates, dtype=np.float64)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise OptionError("rates are probabilities, 0 to 1.")
    random = np.random.default_rng(seed)
    order = random.permuted(np.tile(np.arange(len(chances)), (steps * tokens, 1)), axis=1)
    ends = chances[order].cumsum(axis=1)
    start = random.random((steps * tokens, 1))
    # points start, start + 1, ... fall on an expert as often as its stretch of the row is long
    hit = np.floor(ends - start) > np.floor(ends - chances[order] - start)
    used = np.zeros((steps * tokens, len(chances)), dtype=bool)
    np.put_along_axis(used, order, hit, axis=1)
    together = np.asarray(used.reshape(steps, tokens, -1).any(axis=1))
    return [tuple(np.flatnonzero(together[step]).tolist()) for step in range(steps)]


def site(layer: int) -> str:
    """The name a trace's layer goes by."""
    return f"layers.{layer}"


def layer_of(site: str) -> int:
    """The layer that `site` named."""
    return int(site.rpartition(".")[2])


def keys(trace: Trace) -> list[list[list[Key]]]:
    """The trace as keys: ``[step][layer]``."""
    return [[[Key(site(layer), e) for e in experts] for layer, experts in enumerate(step)] for step in trace]


def by_site(trace: Trace) -> list[Mapping[str, tuple[int, ...]]]:
    """The trace as an `Oracle` reads it: per step, site -> experts."""
    return [{site(layer): experts for layer, experts in enumerate(step)} for step in trace]
