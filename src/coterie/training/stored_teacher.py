"""What a teacher said of a text, kept in a file: its likeliest tokens, and how likely all others are together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from coterie.errors import CheckpointError, OptionError
from coterie.training.distill import TEMPERATURE, Teacher, check_temperature, checksum, teacher_logits

__all__ = ["StoredTeacher", "store_teacher"]


def store_teacher(
    model: Any, data: Dataset[Any], file: str | Path, *, top: int = 32, temperature: float = TEMPERATURE,
    batch: int = 8, progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:  # fmt: skip
    """Ask a teacher about every window of ``data`` and write its ``top`` likeliest tokens to ``file``. Blocks.

    Holds windows x (N - 1) x ``top`` x 8 bytes. The file is there when it is whole.

    Args:
        model: as of `coterie.training.LiveTeacher`.
        data: windows as a student will see them: input_ids and labels [N], all of one length.
        top: tokens kept of each prediction, cut to the vocabulary; all of them lose nothing.
        temperature: tau that the student will learn with.
        batch: windows of a forward.
        progress: called as (windows done, of).

    Raises:
        OptionError: ``top`` below 1, a temperature of 0 or less, or no windows.
    """
    windows = len(data)  # type: ignore[arg-type]
    if top < 1 or batch < 1 or windows < 1:
        raise OptionError(f"top, batch and windows must be at least 1, not {top}, {batch} and {windows}.")
    check_temperature(temperature)
    model.eval()
    parts: dict[str, list[Tensor]] = {"ids": [], "log_probs": [], "checksums": []}
    for first in range(0, windows, batch):
        items = default_collate([data[number] for number in range(first, min(first + batch, windows))])
        logits = teacher_logits(model, items)[:, :-1].float() / temperature
        best = torch.log_softmax(logits, -1).topk(min(top, logits.shape[-1]), dim=-1)
        parts["ids"].append(best.indices.int().cpu())
        parts["log_probs"].append(best.values.cpu())
        parts["checksums"].append(torch.tensor([checksum(ids) for ids in items["input_ids"]]))
        progress(min(first + batch, windows), windows)
    target = Path(file)
    part = target.with_name(target.name + ".part")
    about = {"temperature": repr(temperature), "vocabulary": str(logits.shape[-1])}
    save_file({name: torch.cat(each) for name, each in parts.items()}, part, metadata=about)
    os.replace(part, target)


class StoredTeacher(Teacher):
    """A teacher that was heard before, from the file of `store_teacher`. Final; only the rows asked for are read.

    Its divergence is over the tokens that were kept and one more class, all others together: at most that of the
    teacher itself, and equal where all tokens were kept.

    Raises:
        CheckpointError: the file is not there, or is no such file.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        if not self._file.is_file():
            raise CheckpointError(f"{file} is not there. Write it with coterie.training.store_teacher.")
        try:
            opened = safe_open(self._file, "pt")
            about = opened.metadata() or {}
            self.temperature, self._vocabulary = float(about["temperature"]), int(about["vocabulary"])
            self._checksums: list[int] = opened.get_tensor("checksums").tolist()
            self._ids, self._log_probs = opened.get_slice("ids"), opened.get_slice("log_probs")
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{file} holds no teacher's words ({error}). Write it anew with coterie.training.store_teacher."
            ) from error

    def check(self, windows: int) -> None:
        if windows > len(self._checksums):
            raise OptionError(
                f"The teacher was heard about {len(self._checksums)} windows, and {windows} are to be learned. Store "
                "more, or take fewer steps."
            )

    def divergence(self, first: int, inputs: Mapping[str, Any], logits: Tensor) -> Tensor:
        ids = inputs["input_ids"]
        rows = slice(first, first + len(ids))
        if [checksum(each) for each in ids] != self._checksums[rows] or logits.shape[-1] != self._vocabulary:
            raise OptionError(
                f"{self._file} is about another text or vocabulary than window {first} and those after it. Store the "
                "teacher for the data that is learned from: same text, length, seed and batch."
            )
        valid = inputs["labels"][:, 1:].to(logits.device) != -100
        kept, wanted = (each[rows].to(logits.device)[valid] for each in (self._ids, self._log_probs))
        said = torch.log_softmax(logits[:, :-1][valid].float() / self.temperature, -1)
        return _divergence(said, kept.long(), wanted)


def _divergence(said: Tensor, kept: Tensor, wanted: Tensor) -> Tensor:
    """Mean over rows of sum p (log p - log q) over the kept tokens and all others as one.

    Args:
        said: [n, V] log q.
        kept: [n, top] ids.
        wanted: [n, top] log p.
    """
    chosen = said.gather(-1, kept)
    rows = (wanted.exp() * (wanted - chosen)).sum(-1)
    if kept.shape[-1] < said.shape[-1]:
        rest = (1 - wanted.exp().sum(-1)).clamp_min(0)
        others = said.scatter(-1, kept, -torch.inf).logsumexp(-1)
        rows = rows + torch.where(rest > 0, rest * (rest.clamp_min(1e-30).log() - others), 0.0)
    return rows.sum() / max(1, len(rows))
