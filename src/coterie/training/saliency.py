"""How much the loss would miss a channel: activation times gradient, added up over a calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.feed_forwards import ChannelCollection, find_ffns
from coterie.training.next_token import next_token_loss

__all__ = ["add_saliency"]


def add_saliency(model: Any, collection: ChannelCollection, ids: Tensor) -> float:
    """Run ``model`` over ``ids`` and add |activation x gradient| of every channel to ``collection``, as LLaMA-MoE does.

    The gradient is that of the summed loss of next tokens, so that the score of a token does not depend on how many
    are read at once. Inside `coterie.models.collect_channels`, which hears the activations of the same forward.
    Neither the model nor its gradients change; every activation of the forward is held until the backward is done.

    Args:
        model: a causal language model in eval mode.
        collection: of ``model``.
        ids: [B, N] tokens without padding, N of 2 or more.

    Returns the mean loss in nats per token.
    """
    kept: dict[str, Tensor] = {}
    with torch.enable_grad(), _heard(model, kept):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = next_token_loss(logits, ids)
        total = loss * ids.shape[0] * (ids.shape[1] - 1)
        gradients = torch.autograd.grad(total, list(kept.values()))
    for (name, activation), gradient in zip(kept.items(), gradients, strict=True):
        product = activation.detach().float() * gradient.float()
        collection.sites[name].add_gradient(collection.domain, product.reshape(-1, product.shape[-1]))
    return float(loss.detach())


@contextmanager
def _heard(model: Any, kept: dict[str, Tensor]) -> Iterator[None]:
    """Inside, activations are kept with their graph, which begins at the embedding: no weight has a part in it."""

    def keep(name: str) -> Callable[..., None]:
        def listen(down: nn.Module, args: tuple[Any, ...]) -> None:
            kept[name] = args[0]

        return listen

    handles = [model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())]
    for site in find_ffns(model):
        handles.append(site.block.get_submodule(site.down).register_forward_pre_hook(keep(site.name)))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
