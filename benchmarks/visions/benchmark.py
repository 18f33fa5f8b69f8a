"""Every architecture, batch and mode: answers compared, then times of interleaved repeats."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from layers.answers import error
from layers.timing import interleaved
from torch import Tensor
from torch.nn import functional as F

from coterie.models.vision.spec import Architecture, ImageRouter
from visions.arms import ARMS, GROUPED, MASKED, Contest

TOLERANCE = 1e-8  # relative (L2) of every tensor in float64; one image on another route exceeds it by far

Record = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """What the user asked for."""

    architectures: tuple[Architecture, ...]
    batches: tuple[int, ...]
    modes: tuple[str, ...]
    experts: int
    width: float
    seed: int
    router: ImageRouter = "resnet20"


def run(choice: Choice, say: Say) -> Iterator[Record]:
    """A record per architecture of kind "cost", and one of kind "case" per mode and batch, as they end."""
    for architecture in choice.architectures:
        contest = Contest(architecture, choice.experts, choice.width, choice.seed, choice.router)
        yield {"kind": "cost", "architecture": architecture} | _cost(contest)
        for mode in choice.modes:
            for size in choice.batches:
                say(f"{architecture}, {mode}, batch {size}")
                yield _case(contest, mode, size) | {"kind": "case"}


def _cost(contest: Contest) -> Record:
    cost = contest.cost
    return {
        "experts": contest.experts, "width": contest.width, "dense": cost.dense.macs, "narrow": cost.small.macs,
        "pathway": cost.pathway, "router": cost.router, "router_name": contest.router, "parameters": cost.parameters,
        "dense_parameters": cost.dense.parameters,
    }  # fmt: skip


def _case(contest: Contest, mode: str, size: int) -> Record:
    images, labels = contest.batch(size)
    shares = contest.prepare(mode, images)
    off = error(_answer(contest, GROUPED, mode, images, labels), _answer(contest, MASKED, mode, images, labels))
    right = [arm for arm in ARMS if arm != GROUPED or off <= TOLERANCE]
    load = os.getloadavg()[0]

    def run_of(arm: str, number: int) -> Callable[[], object]:
        if mode == "training":
            return partial(contest.train, arm, images, labels)
        return partial(contest.forward, arm, images)

    for arm in right:
        run_of(arm, 0)()  # what is made once is not measured
    seconds = interleaved({arm: partial(run_of, arm) for arm in right}, contest.forget)  # type: ignore[arg-type]
    return {
        "architecture": contest.architecture, "mode": mode, "batch": size, "experts": contest.experts,
        "shares": shares, "wrong": {} if GROUPED in right else {GROUPED: off}, "error": off, "seconds": seconds,
        "load": [load, os.getloadavg()[0]],
    }  # fmt: skip


def _answer(contest: Contest, arm: str, mode: str, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Logits; in training also the gradients of all parameters, in the order of their names.

    In float64: forty layers of batch norms make of float32's rounding what looks like another answer.
    """
    model = copy.deepcopy(contest.models[arm]).double()
    with torch.set_grad_enabled(mode == "training"):
        logits: Tensor = model(images.double())
    if mode == "inference":
        return [logits]
    F.cross_entropy(logits, labels).backward()
    grads = (p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None)
    return [logits.detach(), *(grad for grad in grads if bool(grad.any()))]
