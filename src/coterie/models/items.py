"""Which item of a forward is which token of which sequence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Items:
    """The T = B x N items of one forward, sequence after sequence, as routers see them.

    Attributes:
        sequence: [T] int64, row of the batch.
        position: [T] int64, absolute position in the sequence, padding not counted.
        mask: [T] bool, False where padding.
        ids: [T] int64, None where the model was given embeddings.
        past: tokens per sequence that lay in the cache before.
        batch: B.
    """

    sequence: Tensor
    position: Tensor
    mask: Tensor
    ids: Tensor | None
    past: int
    batch: int


def items_of(body: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Items:
    """From a call of a transformers base model.

    Args:
        body: the base model, whose ``forward`` names the arguments.
        args, kwargs: of the call.
    """
    given = _arguments(body, args, kwargs)
    ids = given.get("input_ids")
    table: Tensor = given["inputs_embeds"][..., 0] if ids is None else ids
    batch, length = table.shape
    cache = given.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    mask, before = _mask(given.get("attention_mask"), batch, past, length, table.device)
    position = given.get("position_ids")
    if position is None:
        position = before if before is not None else past + torch.arange(length, device=table.device)
    sequence = torch.arange(batch, device=table.device)
    return Items(
        sequence.repeat_interleave(length), position.expand(batch, length).reshape(-1).long(), mask.reshape(-1),
        None if ids is None else ids.reshape(-1), past, batch,
    )  # fmt: skip


def cache_of(body: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The cache a base model was called with, empty or not; None where it was given none."""
    return _arguments(body, args, kwargs).get("past_key_values")


def _arguments(body: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = inspect.signature(body.forward).bind_partial(*args, **kwargs).arguments
    return {**given.pop("kwargs", {}), **given}


def _mask(
    attention: Tensor | None, batch: int, past: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[B, N] which items are real, and their positions where a padding mask over past and present tells them."""
    if attention is None or attention.dim() != 2 or attention.shape[1] < past + length:
        return torch.ones(batch, length, dtype=torch.bool, device=device), None
    here = slice(past, past + length)
    return attention[:, here].bool(), attention.long().cumsum(-1).sub(1).clamp(min=0)[:, here]
