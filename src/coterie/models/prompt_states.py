"""What prompts look like in front of a layer: mean inputs of modules over groups of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError, PromptError
from coterie.models.prompts import Prompts

__all__ = ["Pooling", "mean_embeddings", "mean_inputs"]

Pooling = Literal["mean", "last"]


@torch.no_grad()
def mean_inputs(
    model: Any,
    modules: Mapping[str, nn.Module],
    prompts: Prompts,
    groups: Mapping[str, Sequence[str]],
    *,
    pooling: Pooling = "mean",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Tensor]]:
    """Name -> group -> [D] float32: the mean of what a module reads over the group's prompts. Blocks.

    Prompts are read one by one, so that there is no padding to leave out. The first token is left out where there are
    others: what models make of it hardly depends on the text.

    Args:
        model: a live language model.
        modules: name -> module of ``model`` whose first positional input is meant.
        prompts: its tokenizer.
        groups: name -> texts, taken as they are: no chat template.
        pooling: over the tokens of a prompt, their mean or the last alone.

    Raises:
        PromptError: a group without prompts, an empty prompt, or one longer than the context.
        CheckpointError: the model computes numbers that are not finite.
    """
    heard: dict[str, Tensor] = {}
    handles = [module.register_forward_pre_hook(_listener(heard, name)) for name, module in modules.items()]
    found: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    device = next(model.parameters()).device
    try:
        for group, texts in groups.items():
            say(f"Reading the prompts of {group}")
            sums = {name: torch.zeros(()) for name in modules}
            for ids in _encoded(prompts, group, texts):
                heard.clear()
                model(input_ids=ids.to(device), use_cache=False)
                for name, states in heard.items():
                    sums[name] = sums[name] + _pooled(states, pooling)
            for name, total in sums.items():
                found[name][group] = _finite(total / len(texts), name)
    finally:
        for handle in handles:
            handle.remove()
    return found


def mean_embeddings(embedding: Tensor, prompts: Prompts, groups: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Group -> [D] float32: the mean embedding of the tokens of its prompts; no model is run.

    Args:
        embedding: [V, D].

    Raises:
        PromptError: as `mean_inputs`.
    """
    found = {}
    for group, texts in groups.items():
        means = [embedding[ids[0]].float().mean(0) for ids in _encoded(prompts, group, texts)]
        found[group] = torch.stack(means).mean(0)
    return found


def _encoded(prompts: Prompts, group: str, texts: Sequence[str]) -> list[Tensor]:
    if not texts:
        raise PromptError(f"{group} has no prompts. Give at least one that it should answer.")
    if any(not text.strip() for text in texts):
        raise PromptError(f"A prompt of {group} is empty. Write some words, or leave it out.")
    return [prompts.encode(text, raw=True) for text in texts]


def _listener(heard: dict[str, Tensor], name: str) -> Callable[..., None]:
    def listen(module: nn.Module, args: tuple[Any, ...]) -> None:
        heard[name] = args[0].detach().reshape(-1, args[0].shape[-1])

    return listen


def _pooled(states: Tensor, pooling: Pooling) -> Tensor:
    """[D] float32 of one prompt's states [N, D]."""
    wide = states.float().cpu()
    if pooling == "last":
        return wide[-1]
    return wide[1:].mean(0) if len(wide) > 1 else wide[0]


def _finite(mean: Tensor, name: str) -> Tensor:
    if not mean.isfinite().all():
        raise CheckpointError(f"The model computes numbers that are not finite in front of {name}. Copy it again.")
    return mean
