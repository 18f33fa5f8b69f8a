"""What a trained model is worth: perplexity, and whether its experts tell domains apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
def expert_histograms(model: Any, domains: Mapping[str, Tensor], *, length: int) -> Tensor:
    """[L, domains, E] int64: how often each layer chose each expert for the tokens of each domain.

    Args:
        model: a transformers mixture that returns router logits; its mode is put to eval and back.
        domains: name -> [N] int64 ids; cut into whole windows of ``length``.
    """
    was_training = model.training
    model.eval()
    choices, experts = model.config.num_experts_per_tok, model.config.num_experts
    counts = []
    for ids in domains.values():
        rows = ids[: len(ids) // length * length].reshape(-1, length).to(model.device)
        logits = model(input_ids=rows, output_router_logits=True).router_logits
        chosen = [layer.topk(choices, dim=-1).indices.flatten() for layer in logits]
        counts.append(torch.stack([torch.bincount(layer, minlength=experts) for layer in chosen]))
    model.train(was_training)
    return torch.stack(counts, dim=1).cpu()


def chi_square(table: Tensor) -> tuple[float, int, float]:
    """Pearson's test that the rows of [rows, columns] counts come from one distribution.

    Returns the statistic, its degrees of freedom and the p-value. Columns without counts are left out. The
    p-value is 0 where it is too small for float64.
    """
    counts = table[:, table.sum(0) > 0].double()
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    if freedom < 1:
        return 0.0, freedom, 1.0
    upper = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2)
    return float(statistic), freedom, float(upper)


def perplexity(nats: float) -> float:
    """e to the mean nats per token."""
    return math.exp(nats)
