"""What a trained model is worth: perplexity, and whether its experts tell domains apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.training.windows import batches, stream


@torch.inference_mode()
def cross_entropy(model: Any, ids: Tensor, *, length: int, stride: int | None = None, batch: int = 16) -> float:
    """Mean nats per token of a text, each token but the first predicted once.

    Args:
        model: a causal transformers model; its mode is put to eval and back.
        ids: [N] int64, N at least 2.
        length: tokens the model sees at most.
        stride: targets a window adds; default half of ``length``, so at least half of it stands before each target.
        batch: windows at a time.
    """
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    for rows, new in batches(stream(ids, length, stride or length // 2), batch):
        logits = model(input_ids=rows.to(model.device), output_router_logits=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:].to(logits.device), reduction="none"
        ).cpu()
        fresh = torch.arange(losses.shape[1]) >= losses.shape[1] - new[:, None]
        total, count = total + float(losses[fresh].double().sum()), count + int(fresh.sum())
    model.train(was_training)
    return total / count


@torch.inference_mode()
def expert_histograms(model: Any, ids: Tensor, *, length: int) -> Tensor:
    """[L, windows, E] int64: how often each layer chose each expert for the tokens of each whole window of a text.

    Args:
        model: a transformers mixture that returns router logits; its mode is put to eval and back.
        ids: [N] int64, N at least ``length``.
        length: tokens of a window.
    """
    was_training = model.training
    model.eval()
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    logits = model(input_ids=rows.to(model.device), output_router_logits=True).router_logits
    model.train(was_training)
    return torch.stack([_chosen(layer, len(rows), model.config.num_experts_per_tok) for layer in logits])


def _chosen(logits: Tensor, windows: int, choices: int) -> Tensor:
    """[windows, E] counts from [windows * length, E] logits."""
    taken = torch.zeros(logits.shape, dtype=torch.int64).scatter_(1, logits.cpu().topk(choices, dim=-1).indices, 1)
    return taken.reshape(windows, -1, logits.shape[-1]).sum(1)


def chi_square(table: Tensor) -> tuple[float, int, float]:
    """Pearson's test that the rows of [rows, columns] counts come from one distribution.

    Returns the statistic, its degrees of freedom and the p-value. Columns without counts are left out. The
    p-value is 0 where it is too small for float64.
    """
    counts = table[:, table.sum(0) > 0]
    statistic = _statistic(counts)
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    if freedom < 1:
        return 0.0, freedom, 1.0
    upper = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2)
    return float(statistic), freedom, float(upper)


def _statistic(tables: Tensor) -> Tensor:
    """[...] float64 from [..., rows, columns] counts without empty columns."""
    counts = tables.double()
    expected = counts.sum(-1, keepdim=True) * counts.sum(-2, keepdim=True) / counts.sum((-1, -2), keepdim=True)
    return ((counts - expected) ** 2 / expected).sum((-1, -2))


def shuffled_p(groups: Sequence[Tensor], shuffles: int = 999, seed: int = 0) -> float:
    """The share of shuffles of whole windows among groups whose chi-square is at least the true one, the true included.

    Tokens of one window resemble each other, so `chi_square` on tokens finds differences too easily; here a window
    is one observation. The smallest value is 1 / (1 + shuffles).

    Args:
        groups: [windows, E] counts of each group.
        shuffles: how many.
        seed: of the shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat(list(groups)).double()
    rows = rows[:, rows.sum(0) > 0]
    sizes = torch.tensor([len(group) for group in groups])
    member = torch.nn.functional.one_hot(torch.arange(len(sizes)).repeat_interleave(sizes)).double()
    orders = [torch.arange(len(rows)), *(torch.randperm(len(rows), generator=generator) for _ in range(shuffles))]
    statistics = torch.stack([_statistic(member[order].T @ rows) for order in orders])
    return float((statistics >= statistics[0]).double().mean())
