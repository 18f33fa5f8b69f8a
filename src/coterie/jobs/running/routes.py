"""Routes to plan with, as the store's simulator reads them: of a trace, drawn by measured usage, or uniform."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.routing import RoutePlan, Routing
from coterie.store import Key
from coterie.store.traces import Trace, drawn, uniform

# the simulator looks at every resident expert when one has to go: beyond so many, some layers stand for all
_MOST_EXPERTS = 640
_FEWEST_LAYERS = 3
DECODE = 64  # tokens of an answer that are simulated


@dataclass(frozen=True)
class Routes:
    """One request, forward after forward: the prompt in pieces, then token by token.

    Attributes:
        sites: numbers of the layers that are simulated, into ``checkpoint.sites``; the others are taken to be like
            them.
        prefill, decode: ``[forward][simulated layer]`` -> experts.
        prompt: tokens of the prompt, of each sequence.
        batch: sequences.
        source: in words.
    """

    sites: tuple[int, ...]
    prefill: Trace
    decode: Trace
    prompt: int
    batch: int
    source: str


def uniform_routes(checkpoint: Checkpoint, *, prompt: int, batch: int, chunk: int, seed: int = 0) -> Routes:
    """Every token of every layer draws its experts anew: what a model without any preference would do.

    Args:
        prompt: tokens of each sequence's prompt; ``chunk`` of them are read at once.
    """

    def draw(site: ExpertSite, steps: int, tokens: int, seed: int) -> list[tuple[int, ...]]:
        return [layers[0] for layers in uniform(steps, 1, site.num_experts, site.top_k, tokens, seed)]

    return _made_up(checkpoint, draw, "uniform", prompt=prompt, batch=batch, chunk=chunk, seed=seed)


def measured_routes(
    checkpoint: Checkpoint, rates: Mapping[Key, float], tokens: int, *, prompt: int, batch: int, chunk: int,
    seed: int = 0,
) -> Routes:  # fmt: skip
    """Every token draws its experts anew, each as often as statistics counted it. No locality beyond that.

    Args:
        rates: share of the tokens that used each expert, as of `coterie.jobs.running.warm.rates`.
        tokens: that they were counted on, for the source.
        prompt: tokens of each sequence's prompt; ``chunk`` of them are read at once.
    """

    def draw(site: ExpertSite, steps: int, tokens: int, seed: int) -> list[tuple[int, ...]]:
        return drawn(steps, [rates[Key(site.name, expert)] for expert in range(site.num_experts)], tokens, seed)

    source = f"measured usage, {tokens} tokens"
    return _made_up(checkpoint, draw, source, prompt=prompt, batch=batch, chunk=chunk, seed=seed)


_Draw = Callable[[ExpertSite, int, int, int], list[tuple[int, ...]]]
"""(layer, steps, tokens of a step, seed) -> its experts in each step."""


def _made_up(
    checkpoint: Checkpoint, draw: _Draw, source: str, *, prompt: int, batch: int, chunk: int, seed: int
) -> Routes:
    """A request whose layers are drawn one by one."""
    chosen = sampled(checkpoint.sites)
    sizes = [min(chunk, prompt - start) * batch for start in range(0, prompt, chunk)]
    columns = []
    for number in chosen:
        site = checkpoint.sites[number]
        seeds = [seed * 1_000_003 + 1009 * number + n for n in range(len(sizes) + 1)]
        pieces = [draw(site, 1, size, one) for size, one in zip(sizes, seeds, strict=False)]
        pieces.append(draw(site, DECODE, batch, seeds[-1]))
        columns.append([experts for piece in pieces for experts in piece])
    steps = list(zip(*columns, strict=True))
    return Routes(chosen, steps[: len(sizes)], steps[len(sizes) :], prompt, batch, source)


def recorded_routes(checkpoint: Checkpoint, plan: RoutePlan, *, prompt: int, batch: int, chunk: int) -> Routes:
    """A recorded text as a request: its beginning is the prompt, what follows the answer.

    The longest sequences of the trace run beside each other; where it has too few, they are joined and cut into
    ``batch`` pieces. A prompt takes half of what there is at most.

    Raises:
        OptionError: the trace is of another model, or too short.
    """
    _check_sites(checkpoint, plan)
    streams = _streams(plan, batch)
    length = min(len(stream) for stream in streams)
    if length < 2:
        raise OptionError(
            f"The trace has {plan.num_items} tokens, too few for a batch of {batch}: two tokens per sequence are the "
            "least. Record a longer text with coterie trace."
        )
    prompt = min(prompt, length // 2)
    cuts = [*range(0, prompt, chunk), *range(prompt, min(prompt + DECODE, length) + 1)]
    chosen = sampled(checkpoint.sites)
    columns = [_column(plan[checkpoint.sites[number].name], streams, cuts) for number in chosen]
    steps, forwards = list(zip(*columns, strict=True)), -(-prompt // chunk)
    return Routes(chosen, steps[:forwards], steps[forwards:], prompt, batch, f"recorded, {plan.num_items} tokens")


def sampled(sites: Sequence[ExpertSite]) -> tuple[int, ...]:
    """Numbers of the layers to simulate, spread evenly: all, unless that takes too long."""
    most = max(site.num_experts for site in sites)
    count = min(len(sites), max(_FEWEST_LAYERS, _MOST_EXPERTS // most))
    return tuple(sorted({round(place) for place in np.linspace(0, len(sites) - 1, count)}))


def _check_sites(checkpoint: Checkpoint, plan: RoutePlan) -> None:
    for site in checkpoint.sites:
        if site.name not in plan.sites or plan[site.name].num_experts != site.num_experts:
            raise OptionError(
                f"The trace is of another model: it says nothing about {site.num_experts} experts at {site.name}. "
                f"Record one of this model with coterie trace."
            )


def _streams(plan: RoutePlan, batch: int) -> list[Tensor]:
    """Item numbers of ``batch`` streams of text, padding left out."""
    items = torch.arange(plan.num_items)
    real = items if plan.mask is None else items[plan.mask]
    sequence = torch.zeros_like(items) if plan.sequence is None else plan.sequence
    # a plan has its items forward after forward: a stable sort keeps each sequence in the order of its tokens
    ordered = real[torch.sort(sequence[real], stable=True).indices]
    streams = list(ordered.split(torch.unique_consecutive(sequence[ordered], return_counts=True)[1].tolist()))
    if len(streams) < batch:
        return list(ordered[: len(ordered) // batch * batch].chunk(batch)) if len(ordered) >= batch else [ordered[:0]]
    return sorted(streams, key=len, reverse=True)[:batch]


def _column(routing: Routing, streams: list[Tensor], cuts: list[int]) -> list[tuple[int, ...]]:
    """One layer: the distinct experts of each forward, which holds tokens ``cuts[n]`` to ``cuts[n + 1]`` of all."""
    ends = routing.experts_per_item().cumsum(0)
    starts = (ends - routing.experts_per_item()).tolist()
    experts, stops = routing.expert.tolist(), ends.tolist()
    column = []
    for start, stop in pairwise(cuts):
        items = [item for stream in streams for item in stream[start:stop].tolist()]
        column.append(tuple(sorted({expert for item in items for expert in experts[starts[item] : stops[item]]})))
    return column
