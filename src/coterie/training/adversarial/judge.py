"""Accuracy with and without an attack, and where the images go: what a run is watched by and its best is chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.training.adversarial.attacks import Attack, perturb
from coterie.training.adversarial.view import held_still, load_of, route_of, view
from coterie.training.images import ImageData


@dataclass(frozen=True)
class Judged:
    """Of a model on N images.

    Attributes:
        accuracy, robust_accuracy: the share that is right, clean and under the attack.
        load: clean images on each route, the sum over routers; empty of a dense model.
        flips: the share whose route the attack changed.
    """

    accuracy: float
    robust_accuracy: float
    load: tuple[int, ...] = ()
    flips: float = 0.0

    @property
    def largest_share(self) -> float:
        """Of the images, on the route that has most; 0 of a dense model."""
        return max(self.load) / sum(self.load) if self.load else 0.0


def judge(model: Any, data: ImageData, attack: Attack, *, batch: int = 256, seed: int = 0) -> Judged:
    """Attack every image once. Eval mode meanwhile; leaves the model as it was. Blocks.

    Raises:
        OptionError: the images do not fit the model.
        AttackError: the attack stands still.
    """
    device = next(model.parameters()).device
    right = robust = flipped = decided = 0
    loads: list[Tensor] = []
    for index in torch.arange(len(data)).split(batch):
        images, labels = data.batch(index, device)
        perturbed = perturb(model, images, labels, attack, seed=seed, index=index)
        with torch.no_grad(), held_still(model):
            clean, seen = view(model, images), view(model, perturbed)
        right += int((clean.classes.argmax(1) == labels).sum())
        robust += int((seen.classes.argmax(1) == labels).sum())
        for one, other in zip(clean.routings, seen.routings, strict=True):
            flipped, decided = flipped + int((route_of(one) != route_of(other)).sum()), decided + len(index)
        loads += [load_of(clean.routings)] if clean.routings else []
    return Judged(right / len(data), robust / len(data), _total(loads), flipped / max(1, decided))


@torch.no_grad()
def route_load(model: Any, data: ImageData, *, batch: int = 256, most: int = 1024) -> tuple[int, ...]:
    """Images on each route, of the first ``most``, in eval mode; empty of a dense model."""
    device, loads = next(model.parameters()).device, []
    with held_still(model):
        for index in torch.arange(min(most, len(data))).split(batch):
            routings = view(model, data.batch(index, device)[0]).routings
            loads += [load_of(routings)] if routings else []
    return _total(loads)


def _total(loads: list[Tensor]) -> tuple[int, ...]:
    return tuple(torch.stack(loads).sum(0).tolist()) if loads else ()
