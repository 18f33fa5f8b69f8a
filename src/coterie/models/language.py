"""Language models whose experts are ours: everything else is transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import Experts
from coterie.models.bridge import ExpertsBridge
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import class_without, load_dense, skeleton
from coterie.models.find import find_sites
from coterie.models.own_experts import aliased, completed
from coterie.models.tensors import drop_cache


def load_host(
    checkpoint: Checkpoint,
    factory: Callable[[ExpertSite], Experts],
    dtype: torch.dtype | None = None,
    *,
    keep: bool = False,
) -> Any:
    """The checkpoint's transformers model with ``factory(site)`` in place of each layer's experts.

    Expert weights are neither read nor mapped here; dense weights are read into anonymous memory, and the
    pages they were read through are dropped from the page cache. Blocks while reading.

    Args:
        checkpoint: opened.
        factory: called once per site, in layer order, after the dense weights are in place.
        dtype: of dense weights and activations; default `Checkpoint.compute_dtype`.
        keep: leave the page cache as it is: the files are read once more right after.

    Returns the model in eval mode; its dense parameters ask for no gradient. ``generate``, output recorders and
    ``deepcopy`` work as with any transformers model. ``state_dict`` holds what is resident: the dense weights
    and what parameters the given experts have; ``save_pretrained`` therefore refuses.

    Raises:
        CheckpointError: a file is damaged or gone.
    """
    dtype = dtype or checkpoint.compute_dtype
    names = [*checkpoint.beside, *(site.name for site in checkpoint.sites)]
    body = skeleton(checkpoint.config, dtype)
    model = load_dense(
        class_without(type(body), names), checkpoint.path, body.config, checkpoint.dense_readers(keep), dtype
    ).requires_grad_(False)
    if not keep:
        drop_cache({part.path for part in checkpoint.dense.values()})
    gates = {site.name: site.gate for site in find_sites(body)}
    for site in checkpoint.sites:
        experts = completed(aliased(factory(site), site.experts_of), gates[site.name])
        model.set_submodule(site.name, ExpertsBridge(experts, body.get_submodule(site.name)))
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_plain_strides)
    return model.eval()


def _plain_strides(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hand the head a fresh copy of its few rows.

    A prefill slices out the last token of each sequence. On such strides torch's bfloat16 product on CPUs copies
    the whole head once per sequence: 0.8 s and 196 MiB for a vocabulary of 50,304 and a width of 2048.
    """
    return (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
