"""Every arm decodes the same tokens over the same experts, in turns; answers first."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoding.models import PEERS, Arm

# worst relative error (L2, over the steps) that bfloat16 rounding in another order may cause
TOLERANCE = 0.02


def compare(arms: dict[str, Arm], ids: Tensor, prompt: int) -> dict[str, dict[str, float]]:
    """Per arm: the worst step's error against transformers' default, and how many greedy tokens are the same."""
    logits = {name: decode(arm, ids, prompt)[0] for name, arm in arms.items()}
    reference = logits[PEERS[0]]
    found = {}
    for name, steps in logits.items():
        error = (
            torch.linalg.vector_norm(steps - reference, dim=-1) / torch.linalg.vector_norm(reference, dim=-1)
        ).max()
        same = int((steps.argmax(-1) == reference.argmax(-1)).sum())
        found[name] = {"error": float(error) if torch.isfinite(steps).all() else float("inf"), "same": same}
    return found


def timed(arms: dict[str, Arm], ids: Tensor, prompt: int, rounds: int, say: Callable[[str], None]) -> list[Any]:
    """A record per arm and round: seconds of every decode step."""
    records = []
    for number in range(rounds):
        for name, arm in arms.items():
            seconds = decode(arm, ids, prompt)[1]
            records.append({"kind": "round", "arm": name, "round": number, "seconds": seconds})
            say(f"round {number + 1}, {name}: {1000 * sum(seconds) / len(seconds):.1f} ms per token")
    return records


@torch.no_grad()
def decode(arm: Arm, ids: Tensor, prompt: int) -> tuple[Tensor, list[float]]:
    """[steps, V] float32 logits of the decode steps, and their seconds. The tokens are given, not chosen."""
    arm.switch()
    arm.routes.rewind()
    cache, rows, seconds = None, [], []
    for start, end in [(0, prompt), *((p, p + 1) for p in range(prompt, ids.shape[1]))]:
        began = time.perf_counter()
        output = arm.model(ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        row = output.logits[0, -1]
        row.argmax().item()  # a sampler would look at it here
        seconds.append(time.perf_counter() - began)
        cache = output.past_key_values
        rows.append(row.float())
    return torch.stack(rows[1:]), seconds[1:]
