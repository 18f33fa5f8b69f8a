"""What an attack does to each class and to each expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from coterie.jobs.attacking.outcome import share

__all__ = ["ClassRow", "ExpertRow", "class_rows", "expert_rows"]


@dataclass(frozen=True)
class ClassRow:
    """Images of one class: how many, the share answered right clean and under every attack, and the experts they use.

    ``experts`` are shares of the class's clean images per expert; empty of a dense model or of routers per layer.
    """

    name: str
    images: int
    clean: float
    robust: float
    experts: Sequence[float]

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"experts": list(self.experts)}


@dataclass(frozen=True)
class ExpertRow:
    """Images that one expert has when they are clean.

    Attributes:
        site: where, "" where every site has the same route.
        expert, images, share: its number, its images, their share of all.
        clean, robust: share of them answered right, clean and under every attack.
        lost: share of them that the end-to-end attack sends to another expert.
        forced, attacked: share of all images answered right if every one must take this expert, at every site: clean,
            and attacked through it; None where not measured.
    """

    site: str
    expert: int
    images: int
    share: float
    clean: float
    robust: float
    lost: float
    forced: float | None = None
    attacked: float | None = None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def class_rows(
    labels: Tensor, names: Sequence[str], clean: Tensor, robust: Tensor, routes: Tensor | None, experts: int
) -> list[ClassRow]:
    """A row per class that has images. ``labels``, ``clean``, ``robust`` [N]; ``routes [N, S]`` of the clean images."""
    rows = []
    for number, name in enumerate(names):
        own = labels == number
        if not bool(own.any()):
            continue
        used = [] if routes is None or routes.shape[1] != 1 else [share(routes[own, 0] == e) for e in range(experts)]
        rows.append(ClassRow(name, int(own.sum()), share(clean[own]), share(robust[own]), used))
    return rows


def expert_rows(
    routes: Tensor, attacked: Tensor, sites: Sequence[str], experts: int, clean: Tensor, robust: Tensor,
    forced: Mapping[int, tuple[float, float]],
) -> list[ExpertRow]:  # fmt: skip
    """A row per site and expert.

    ``routes`` and ``attacked [N, S]`` are those of clean and of attacked images; ``forced`` has two shares per expert.
    """
    rows = []
    for place, site in enumerate(sites):
        for expert in range(experts):
            own = routes[:, place] == expert
            gone = attacked[own, place] != expert
            numbers = (int(own.sum()), share(own), share(clean[own]), share(robust[own]), share(gone))
            rows.append(ExpertRow(site, expert, *numbers, *forced.get(expert, (None, None))))
    return rows
