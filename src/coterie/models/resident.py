"""A site's experts as ordinary parameters in memory: what the store's answers are held against."""

from __future__ import annotations

import torch
from torch import nn

from coterie.experts import FFN, KindExperts
from coterie.models.checkpoint import ExpertSite
from coterie.models.tensors import read_tensor


def resident_experts(site: ExpertSite) -> FFN | KindExperts:
    """All experts of ``site``, read from the checkpoint's byte ranges. Holds them all in memory.

    Computes one expert after another (the loop method), with the kernel that experts in a store use.

    Raises:
        CheckpointError: a file ends before the tensor does.
    """
    if site.kind is not None:
        tensors = [{name: read_tensor(part) for name, part in each.items()} for each in site.each]
        return KindExperts(site.kind, tensors).requires_grad_(False)
    with torch.device("meta"):
        experts = FFN(site.num_experts, site.shape, method="loop")
    stacks = {
        name: torch.empty(site.num_experts, *size, dtype=site.dtype)
        for name, size in site.shape.weight_shapes().items()
    }
    for expert in range(site.num_experts):
        parts = {name: read_tensor(part) for name, part in site.parts(expert).items()}
        for name, weight in site.storage.weights(parts, site.dtype).items():
            stacks[name][expert] = weight
    for name, stack in stacks.items():
        setattr(experts, name, nn.Parameter(stack, requires_grad=False))
    return experts
