"""What a trained model predicts when it is asked with request-time options: k, or how experts are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coterie.models.attach import session_of
from coterie.training import divergence


@torch.inference_mode()
def predictions(model: Any, windows: Tensor, *, seed: int = 0, batch: int = 32, **overrides: Any) -> Tensor:
    """[B, N - 1, V] float32 logits of every next byte of ``windows [B, N]``, in eval mode; the mode is put back.

    Draws are keyed by the number of the window, so that they do not depend on ``batch``.

    Args:
        model: routed, or dense where nothing is asked.
        windows: int64.
        seed: of draws.
        batch: windows of a forward.
        overrides: request-time options, such as ``k=4`` or ``draw="average"``.
    """
    was_training = model.training
    model.eval()
    parts = []
    for first in range(0, len(windows), batch):
        rows = windows[first : first + batch]
        with _asked(model, seed, torch.arange(first, first + len(rows)), overrides):
            parts.append(model(input_ids=rows, use_cache=False).logits[:, :-1].float())
    model.train(was_training)
    return torch.cat(parts)


def bits_per_byte(logits: Tensor, windows: Tensor) -> float:
    """Mean over ``windows [B, N]`` of what the bytes after the first cost; ``logits [B, N - 1, V]``."""
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none")
    return float(loss.double().mean()) / math.log(2)


def bits(model: Any, windows: Tensor, *, seed: int = 0, **overrides: Any) -> float:
    """Bits per byte of one way of asking."""
    return bits_per_byte(predictions(model, windows, seed=seed, **overrides), windows)


def ensemble(paths: Sequence[Tensor]) -> Tensor:
    """[...] log of the mean probability of several predictions."""
    return torch.logsumexp(torch.stack([torch.log_softmax(path, -1) for path in paths]), 0) - math.log(len(paths))


def disagreement(first: Tensor, second: Tensor) -> float:
    """Mean nats of the symmetric divergence of two predictions."""
    return float(divergence(first, second))


@contextmanager
def _asked(model: Any, seed: int, sequences: Tensor, overrides: dict[str, Any]) -> Iterator[None]:
    session = session_of(model)
    if session is None:
        assert not overrides, f"a dense model cannot be asked for {overrides}"
        yield
        return
    before, session.sequences = session.base, sequences
    session.base = replace(before, seed=seed, overrides=overrides)
    try:
        yield
    finally:
        session.base, session.sequences = before, None
