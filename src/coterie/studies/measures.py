"""What a trained model does with its text: losses and routes on a fixed sample, and numbers made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.models.attach import session_of
from coterie.routing import Routing


@dataclass(frozen=True, eq=False)
class Seen:
    """A model on a sample of B windows of N tokens, in L layers that route by routers of ours.

    Attributes:
        loss: [B, N - 1] nats of each predicted token.
        experts: [L, B, N] int64 experts of each token, nulls not counted.
        first: [L, B * N] int64 the route that came first; R where none did.
        ratio: [L, B * N] probability of the first route over that of the second.
        entropy: [L, B * N] nats, over all routes.
    """

    loss: Tensor
    experts: Tensor
    first: Tensor
    ratio: Tensor
    entropy: Tensor

    @property
    def bits(self) -> float:
        """Bits per byte."""
        return float(self.loss.double().mean()) / math.log(2)

    @property
    def mean_experts(self) -> float:
        """Experts per token and layer."""
        return float(self.experts.double().mean())

    @property
    def by_layer(self) -> list[float]:
        """Experts per token of each layer."""
        return [float(layer.double().mean()) for layer in self.experts]


@torch.inference_mode()
def look(model: Any, windows: Tensor, batch: int = 32) -> Seen:
    """Put ``windows [B, N]`` through a model in eval mode, ``batch`` at a time; its mode is put back."""
    was_training = model.training
    model.eval()
    session = session_of(model)
    parts = []
    for rows in windows.split(batch):
        if session is not None:
            session.keep = True
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        routings = list(session.routings.values()) if session is not None else []
        parts.append((loss, *(torch.stack(each) if each else loss.new_zeros(0) for each in _seen(routings))))
        if session is not None:
            session.keep, session.routings = False, {}
    model.train(was_training)
    loss = torch.cat([part[0] for part in parts])
    experts, first, ratio, entropy = (torch.cat([part[at] for part in parts], dim=-1) for at in range(1, 5))
    return Seen(loss, experts.reshape(experts.shape[0], *windows.shape), first, ratio, entropy)


def _seen(routings: Sequence[Routing]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Per layer [T]: experts, first route, ratio, entropy."""
    experts, first, ratio, entropy = [], [], [], []
    for routing in routings:
        assert routing.chosen is not None
        assert routing.probs is not None
        probs = routing.probs.float()
        best = probs.topk(2, dim=-1).values
        experts.append(routing.experts_per_item())
        first.append(routing.chosen[:, 0])
        ratio.append(best[:, 0] / best[:, 1].clamp_min(1e-30))
        entropy.append(-(probs * probs.clamp_min(1e-30).log()).sum(-1))
    return experts, first, ratio, entropy


def sample(data: bytes, count: int, length: int) -> Tensor:
    """[count, length] int64 bytes: windows that lie evenly over ``data``; fewer where there are not as many."""
    ids = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).long()
    count = min(count, len(ids) // length)
    starts = torch.linspace(0, len(ids) - length, count, dtype=torch.float64).long()
    return ids[starts[:, None] + torch.arange(length)]


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's; not a number where one of them does not vary."""
    a, b = a.double().flatten(), b.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else math.nan


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Nats that two labellings [T] of the same items share."""
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    table.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    joint = table / len(a)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    known = joint > 0
    return float((joint[known] * (joint[known] / apart[known]).log()).sum())


def adjusted_mutual_information(a: Tensor, b: Tensor, *, shuffles: int = 20, seed: int = 0) -> tuple[float, float]:
    """(adjusted, baseline): 0 where two labellings agree as by chance, 1 where each tells the other.

    ``(I - E) / (mean(H(a), H(b)) - E)`` with E the mean over ``shuffles`` permutations, which is the baseline in nats.
    Not a number where a labelling has one label.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = mutual_information(a, b)
    by_chance = [mutual_information(a, b[torch.randperm(len(b), generator=generator)]) for _ in range(shuffles)]
    baseline = sum(by_chance) / shuffles
    most = (mutual_information(a, a) + mutual_information(b, b)) / 2 - baseline
    return ((shared - baseline) / most if most > 1e-12 else math.nan), baseline
