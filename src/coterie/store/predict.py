"""Guesses at which experts come next. A wrong guess costs bandwidth, never the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.registry import Registry
from coterie.routing import RoutePlan
from coterie.store.blob import Key

Gate = Callable[[Tensor], Tensor]


class Predictor(ABC):
    """Told what each layer needed, says what to read ahead. One per stream of forwards; not thread-safe."""

    @abstractmethod
    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        """What to read ahead, most urgent first.

        Args:
            site: the layer whose experts are known now.
            needed: those experts, each once.
            x: [T, D] what went into the layer, for predictors that look at it.
        """


PREDICTORS: Registry[Callable[[Sequence[str], Mapping[str, Gate]], Predictor]] = Registry("predictor")


class NoPredictor(Predictor):
    """Never reads ahead."""

    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        return []


class PreviousStep(Predictor):
    """The next layers will need what they needed in the step before (ExpertFlow's token-level baseline).

    Args:
        sites: in the order they run.
        ahead: how many layers to look ahead.
    """

    def __init__(self, sites: Sequence[str], ahead: int = 1) -> None:
        self._following = _following(sites, ahead)
        self._last: dict[str, tuple[int, ...]] = {}

    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        self._last[site] = tuple(needed)
        return [Key(later, expert) for later in self._following[site] for expert in self._last.get(later, ())]


class NextLayerGate(Predictor):
    """The next layer's own gate on this layer's input: hidden states change slowly from layer to layer.

    Args:
        sites: in the order they run.
        gates: site -> function from x [T, D] to expert ids of any shape. Sites without one get no guess.
    """

    def __init__(self, sites: Sequence[str], gates: Mapping[str, Gate]) -> None:
        self._following = _following(sites, 1)
        self._gates = dict(gates)

    @torch.no_grad()
    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        (later,) = self._following[site] or (site,)
        if x is None or later not in self._gates:
            return []
        experts, votes = torch.unique(self._gates[later](x), return_counts=True)
        order = votes.argsort(descending=True, stable=True)
        return [Key(later, expert) for expert in experts[order].tolist()]


class Oracle(Predictor):
    """Knows the routes beforehand: the most that any prediction can gain.

    Args:
        steps: per forward, site -> experts it will need.
        sites: in the order they run.
        ahead: how many layers to look ahead, over the end of a step too; None tells the whole next
            step when a step ends, as a predictor from token ids would.
    """

    def __init__(self, steps: Sequence[Mapping[str, Sequence[int]]], sites: Sequence[str], ahead: int | None = 1):
        self._steps, self._sites, self._ahead = steps, tuple(sites), ahead
        self._keys = [[Key(site, expert) for expert in step[site]] for step in steps for site in sites]
        self._place = {site: number for number, site in enumerate(sites)}
        self._step = 0

    @classmethod
    def from_plan(cls, plan: RoutePlan, lengths: Sequence[int] | None = None, ahead: int | None = 1) -> Oracle:
        """Of a recorded plan whose forwards had so many items each, in order; one each by default."""
        lengths = [1] * plan.num_items if lengths is None else lengths
        if sum(lengths) != plan.num_items:
            raise OptionError(
                f"lengths sum to {sum(lengths)}, the plan has {plan.num_items} items. Give one per forward."
            )
        steps = [
            {
                site: torch.unique(routing.expert[(routing.item >= start) & (routing.item < stop)]).tolist()
                for site, routing in plan.sites.items()
            }
            for start, stop in pairwise([0, *accumulate(lengths)])
        ]
        return cls(steps, tuple(plan.sites), ahead)

    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        last = self._place[site] == len(self._sites) - 1
        present = self._step * len(self._sites) + self._place[site]
        self._step += last
        if self._ahead is None and not last:
            return []
        span = len(self._sites) if self._ahead is None else self._ahead
        return [key for keys in self._keys[present + 1 : present + 1 + span] for key in keys]


class Noisy(Predictor):
    """Another predictor made worse, to see what a real one would be worth.

    Args:
        inner: usually an `Oracle`.
        num_experts: per site.
        recall: share of the inner predictor's keys that is kept.
        precision: of the kept and added keys, the share that was kept; wrong experts of the same
            sites are added to reach it.
        seed: of the draws.
    """

    def __init__(self, inner: Predictor, num_experts: int, *, recall: float, precision: float, seed: int = 0) -> None:
        if not 0 <= recall <= 1 or not 0 < precision <= 1:
            raise OptionError(f"recall must be in [0, 1] and precision in (0, 1], found {recall}, {precision}.")
        self._inner, self._num_experts, self._recall, self._precision = inner, num_experts, recall, precision
        self._random = np.random.default_rng(seed)

    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> list[Key]:
        keys = []
        right = self._inner.after(site, needed, x)
        for key in right:
            if self._random.random() < self._recall:
                keys.append(key)
            wrong = self._random.poisson(self._recall * (1 / self._precision - 1))
            keys += [Key(key.site, int(expert)) for expert in self._random.integers(0, self._num_experts, wrong)]
        return list(dict.fromkeys(keys))


def _following(sites: Sequence[str], ahead: int) -> dict[str, tuple[str, ...]]:
    """Each site's successors in running order, over the end of the step too, itself left out."""
    count = len(sites)
    return {
        site: tuple(sites[(place + n) % count] for n in range(1, min(ahead, count - 1) + 1))
        for place, site in enumerate(sites)
    }


@PREDICTORS.register("none")
def _none(sites: Sequence[str], gates: Mapping[str, Gate]) -> Predictor:
    return NoPredictor()


@PREDICTORS.register("previous-step")
def _previous_step(sites: Sequence[str], gates: Mapping[str, Gate]) -> Predictor:
    return PreviousStep(sites)


@PREDICTORS.register("next-gate")
def _next_gate(sites: Sequence[str], gates: Mapping[str, Gate]) -> Predictor:
    return NextLayerGate(sites, gates)
