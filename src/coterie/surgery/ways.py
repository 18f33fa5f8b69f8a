"""Ways to cut a dense feed-forward: which of a pool of channels goes to which expert.

A way takes a `FeedForward`, the pool [n] of its channels that are to be dealt out, and the number of experts, and
gives every expert as many. To add one, decorate a function with ``@WAYS.register("name")``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.cluster import balanced_assignment, balanced_kmeans, balanced_partition, members
from coterie.ops.partition import even_channels
from coterie.registry import Registry
from coterie.surgery.feed_forward import FeedForward

__all__ = ["WAYS", "Way", "domain_scores"]

Way = Callable[[FeedForward, Tensor, int, int], Tensor]
"""(layer, pool [n] int64 ascending, E, seed) -> [E, n / E] int64 of channels."""

WAYS: Registry[Way] = Registry("way to cut")


@WAYS.register("contiguous")
def contiguous(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """Neighbours together, as they lie in the matrix."""
    return pool[even_channels(len(pool), experts)]


@WAYS.register("random")
def by_lot(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """Dealt out by lot; the base line."""
    order = torch.randperm(len(pool), generator=_generator(layer, seed))
    return pool[even_channels(len(pool), experts, order)]


@WAYS.register("kmeans")
def by_weights(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """Channels that read alike: balanced k-means on the directions of their rows in gate and up (LLaMA-MoE)."""
    names = [name for name in ("gate_proj", "up_proj") if name in layer.weights]
    rows = torch.cat([F.normalize(layer.weights[name][pool].float(), dim=1) for name in names], dim=1)
    return _clusters(rows, pool, experts, seed + layer.layer)


@WAYS.register("kmeans-activations")
def by_activations(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """Channels that fire on the same tokens: balanced k-means on the directions of their activations (as CMoE)."""
    rows = F.normalize(layer.activity.abs().T[pool], dim=1)
    return _clusters(rows, pool, experts, seed + layer.layer)


@WAYS.register("co-activation")
def by_coactivation(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """The graph of which channels are among the most active together, cut so that much stays inside (MoEfication)."""
    active = layer.most_active[:, pool].float()

    def affinity(columns: Tensor) -> Tensor:
        return active.T @ (active @ columns)

    labels = balanced_partition(affinity, len(pool), experts, seed=seed + layer.layer)
    return pool[members(labels, experts)]


@WAYS.register("activation")
def by_domain_activation(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """An expert per domain of text: channels go where they do more than elsewhere."""
    return _by_domain(domain_scores(layer, "activation", experts), pool)


@WAYS.register("gradient")
def by_domain_gradient(layer: FeedForward, pool: Tensor, experts: int, seed: int) -> Tensor:
    """An expert per domain of text, by what the domain's loss feels of a channel (LLaMA-MoE's gradient split)."""
    return _by_domain(domain_scores(layer, "gradient", experts), pool)


def domain_scores(layer: FeedForward, way: str, experts: int) -> Tensor:
    """[E, F] float32: what each channel does in each domain, one expert per domain.

    Raises:
        OptionError: there are no domains, or not as many as experts, or no gradients were collected.
    """
    scores: Mapping[str, Tensor] = layer.gradients if way == "gradient" else layer.scores
    if way == "gradient" and not scores and layer.scores:
        raise OptionError(
            "The statistics have no gradients. Collect them with: coterie trace MODEL --statistics FILE --gradients "
            "--domain NAME=PATH ..."
        )
    if len(scores) != experts:
        raise OptionError(
            f"{way} makes one expert per domain of text, and there are {len(scores)} domains for {experts} experts. "
            "Name each: --domain code=code.txt --domain prose=prose.txt, or choose another way, such as co-activation."
        )
    return torch.stack([score.float() for score in scores.values()])


def _by_domain(scores: Tensor, pool: Tensor) -> Tensor:
    """Channels to domains by the share of what they do that is done there; every domain counts alike."""
    share = scores / scores.sum(1, keepdim=True).clamp(min=1e-30)
    share = share / share.sum(0).clamp(min=1e-30)
    labels = balanced_assignment(-share[:, pool].T)
    return pool[members(labels, len(scores))]


def _clusters(rows: Tensor, pool: Tensor, experts: int, seed: int) -> Tensor:
    labels, _ = balanced_kmeans(rows, experts, seed=seed)
    return pool[members(labels, experts)]


def _generator(layer: FeedForward, seed: int) -> torch.Generator:
    # layers must differ, and so must the same layer under another seed
    return torch.Generator().manual_seed(seed * 1_000_003 + layer.layer)
