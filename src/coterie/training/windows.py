"""What a step sees: windows of one domain each, in an order that depends on the seed and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coterie.errors import OptionError


class Windows(Dataset[dict[str, Tensor]]):
    """``count`` windows of ``length`` tokens, drawn from several streams of ids.

    A window lies within one domain. A domain is read through once, in random order, before any of its text comes
    again; each time the cuts fall elsewhere. The first n windows are the same for any ``count``, so a run that is
    prolonged or cut short sees the same text until then. Final; thread-safe; the streams are not copied.

    Args:
        streams: domain -> [N] int64 ids; each must hold two windows.
        length: tokens of a window.
        count: windows in all, that is steps times batch.
        seed: of the order.
        evenness: a domain's share is its size to this power: 1 in proportion to size, 0 all alike.

    Raises:
        OptionError: a stream is too short.
    """

    def __init__(
        self, streams: Mapping[str, Tensor], length: int, count: int, *, seed: int = 0, evenness: float = 1.0
    ) -> None:
        for domain, ids in streams.items():
            if len(ids) < 2 * length:
                raise OptionError(
                    f"The text of {domain!r} has {len(ids)} tokens; training needs at least {2 * length}. Give more."
                )
        self._streams, self._length = list(streams.values()), length
        share = np.array([len(ids) for ids in self._streams], dtype=np.float64) ** evenness
        draws = np.random.default_rng([seed, 0]).random(count)
        self._domain = np.searchsorted(np.cumsum(share / share.sum()), draws).clip(max=len(share) - 1)
        self._start = np.zeros(count, dtype=np.int64)
        for index, ids in enumerate(self._streams):
            mine = np.flatnonzero(self._domain == index)
            self._start[mine] = _starts(len(ids), length, len(mine), [seed, 1, index])

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, each [length] int64: models shift labels themselves."""
        start = int(self._start[index])
        ids = self._streams[self._domain[index]][start : start + self._length]
        return {"input_ids": ids, "labels": ids}


def _starts(size: int, length: int, count: int, seed: list[int]) -> np.ndarray:
    """Where ``count`` windows begin: pass after pass over the stream, each shuffled and cut at its own offset."""
    per_pass = size // length - 1
    passes = [_one_pass(per_pass, length, [*seed, number]) for number in range(-(-count // per_pass))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *passes])[:count]


def _one_pass(per_pass: int, length: int, seed: list[int]) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(length) + random.permutation(per_pass) * length


def stream(ids: Tensor, length: int, stride: int) -> list[tuple[Tensor, int]]:
    """Windows over a whole text in order, each with how many of its last targets are new.

    Every token but the first is a target once, with at least ``length - stride`` tokens before it where there are
    as many. Returns views.
    """
    parts, done = [], 1
    while done < len(ids):
        end = min(len(ids), max(done + stride, length if done == 1 else 0))
        parts.append((ids[max(0, end - length) : end], end - done))
        done = end
    return parts


def batches(parts: list[tuple[Tensor, int]], size: int) -> list[tuple[Tensor, Tensor]]:
    """Windows of one length stacked: [b, n] ids and [b] counts of new targets. The odd lengths come last, alone."""
    usual = parts[0][0].shape[0] if parts else 0
    same = [part for part in parts if part[0].shape[0] == usual]
    odd = [part for part in parts if part[0].shape[0] != usual]
    groups = [same[at : at + size] for at in range(0, len(same), size)] + [[part] for part in odd]
    return [(torch.stack([ids for ids, _ in group]), torch.tensor([new for _, new in group])) for group in groups]
