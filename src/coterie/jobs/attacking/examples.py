"""Images that an attack broke, kept for the page: a few of each attack, those that changed their expert first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coterie.jobs.attacking.outcome import Answers, Kind
from coterie.jobs.attacking.report import Example
from coterie.jobs.attacking.ways import Scene, Way

__all__ = ["Gallery"]

_EACH, _MOST = 3, 10


@dataclass(frozen=True, eq=False)
class _Kept:
    way: Way
    number: int
    attacked: Tensor
    answer: int
    route: Sequence[int]


@dataclass(eq=False)
class Gallery:
    """Looks at every attack once and keeps a few images of each, no image twice."""

    _kept: list[_Kept] = field(default_factory=list)

    def look(self, way: Way, scene: Scene, found: Tensor, answers: Answers) -> None:
        """Choose among the images [N, C, H, W] that this attack found and that fool the model as it is."""
        if way.kind is Kind.WEAK:
            return
        broken = (scene.clean.predicted == scene.labels) & (answers.predicted != scene.labels)
        broken[[one.number for one in self._kept]] = False
        for number in _rerouted_first(broken, scene.clean.routes, answers.routes)[:_EACH]:
            route = [] if answers.routes is None else answers.routes[number].tolist()
            self._kept.append(_Kept(way, number, found[number].clone(), int(answers.predicted[number]), route))

    def examples(self, scene: Scene, classes: Sequence[str]) -> list[Example]:
        """At most ten, attacks in turn, so that each is there."""
        order = sorted(range(len(self._kept)), key=lambda at: self._turn(at))
        return [self._example(self._kept[at], scene, classes) for at in order[:_MOST]]

    def _turn(self, at: int) -> tuple[int, int]:
        way = self._kept[at].way
        return sum(one.way is way for one in self._kept[:at]), at

    def _example(self, kept: _Kept, scene: Scene, classes: Sequence[str]) -> Example:
        number, routes = kept.number, scene.clean.routes
        return Example(
            classes[int(scene.labels[number])], kept.way.label, scene.images[number], kept.attacked,
            classes[int(scene.clean.predicted[number])], _named(kept.answer, classes),
            [] if routes is None else routes[number].tolist(), kept.route,
        )  # fmt: skip


def _named(answer: int, classes: Sequence[str]) -> str:
    """A model may tell more classes apart than the data has."""
    return classes[answer] if answer < len(classes) else f"class {answer}"


def _rerouted_first(broken: Tensor, before: Tensor | None, after: Tensor | None) -> list[int]:
    if before is None or after is None:
        return broken.nonzero().flatten().tolist()
    moved = (before != after).any(1)
    return torch.cat([(broken & moved).nonzero().flatten(), (broken & ~moved).nonzero().flatten()]).tolist()
