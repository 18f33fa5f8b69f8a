"""A site's experts as ordinary parameters in memory: what the store's answers are held against."""

from __future__ import annotations

import torch
from torch import nn

from coterie.experts import FFN
from coterie.models.checkpoint import ExpertSite
from coterie.models.tensors import FLOATS, read_into


def resident_experts(site: ExpertSite) -> FFN:
    """All experts of ``site``, read from the checkpoint's byte ranges. Holds them all in memory.

    Computes one expert after another (the loop method), with the kernel that experts in a store use.

    Raises:
        CheckpointError: a file ends before the tensor does.
    """
    with torch.device("meta"):
        experts = FFN(site.num_experts, site.shape, method="loop")
    first = site.parts(0)
    for name, size in site.shape.weight_shapes().items():
        stack = torch.empty(site.num_experts, *size, dtype=FLOATS[first[name].dtype])
        for expert in range(site.num_experts):
            read_into(stack[expert], site.parts(expert)[name])
        setattr(experts, name, nn.Parameter(stack, requires_grad=False))
    return experts
