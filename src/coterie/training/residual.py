"""Dropout for decoders that have none of their own, as most of today's: on what joins the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from coterie.errors import OptionError, UnsupportedError


def residual_dropout(model: nn.Module, p: float) -> Callable[[], None]:
    """Drop outputs of attention and feed-forward blocks while ``model`` trains, in place; nothing when it is in eval.

    Nothing of it is saved. Activation checkpointing draws the same again, since torch keeps the random state for it.

    Args:
        model: a transformers model whose layers hold attention and a feed-forward block side by side.
        p: the share that is dropped.

    Returns:
        What takes it back.

    Raises:
        OptionError: ``p`` is not from 0 to 1, 1 left out.
        UnsupportedError: no layer of that kind is found.
    """
    if not 0 <= p < 1:
        raise OptionError(f"p={p} is no share to drop. Write a number from 0 up to, but not, 1.")
    blocks = list(_blocks(model))
    if not blocks:
        raise UnsupportedError(f"{type(model).__name__} has no layer with attention and a feed-forward block.")

    def drop(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return (nn.functional.dropout(output[0], p, module.training), *output[1:])
        return nn.functional.dropout(output, p, module.training)

    handles = [block.register_forward_hook(drop) for block in blocks]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Children of decoder layers that write to the residual stream: all but norms and what drops already."""
    for layer in model.modules():
        children = dict(layer.named_children())
        if any("attn" in name or "attention" in name for name in children) and len(children) > 2:
            for name, child in children.items():
                if "norm" not in name.lower() and not isinstance(child, nn.Dropout):
                    yield child
