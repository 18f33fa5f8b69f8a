"""Dynamic routing (arXiv 2403.07652): do hard inputs get more experts than easy ones when a threshold chooses?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.learning import BATCH, BLOCK, tiny_moe, train, windows_of
from coterie.studies.measures import look, sample
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.training import Objective

LAYERS, STEPS, THRESHOLD, BALANCE = 3, 500, 0.4, 1e-2
PATTERNS, SHORTEST, LONGEST = 64, 2, 8
TOP_2, PAPER, SHARP, FREE = "top-2", "top-p, beta 1e-4", "top-p, beta 1e-2", "top-p, beta 0"
BETAS = {FREE: 0.0, PAPER: 1e-4, SHARP: 1e-2}  # ascending


class Mixed(Dataset[dict[str, Tensor]]):
    """Windows of an easy and a hard kind in turn: even ones are easy. Final."""

    def __init__(self, easy: Tensor, hard: Dataset[dict[str, Tensor]], count: int) -> None:
        self._easy, self._hard, self._count = easy, hard, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index % 2:
            return self._hard[index // 2]
        ids = self._easy[index // 2 % len(self._easy)]
        return {"input_ids": ids, "labels": ids}


def easy_windows(count: int, seed: int) -> Tensor:
    """[count, 64] int64: each repeats one of 64 random patterns of 2 to 8 letters, which are always the same."""
    fixed = np.random.default_rng(0)
    lengths = fixed.integers(SHORTEST, LONGEST + 1, PATTERNS)
    patterns = [fixed.integers(ord("a"), ord("z") + 1, length) for length in lengths]
    picked = np.random.default_rng([seed, 1]).integers(PATTERNS, size=count)
    return torch.from_numpy(np.stack([np.resize(patterns[one], BLOCK) for one in picked])).long()


def run(bench: Bench) -> Metrics:
    """Train one arm on the mix and see how many experts each kind of sequence uses."""
    options: Mapping[str, Any] = bench.arm.options
    model = tiny_moe(bench.seed, LAYERS, options["router"], options["with"])
    count = bench.steps * BATCH
    hard = windows_of(bench.corpus.parts["train"], -(-count // 2), bench.seed)
    data = Mixed(easy_windows(-(-count // 2), bench.seed), hard, count)
    kinds = {
        "easy": easy_windows(bench.scaled(512, 32), 2**32 - 1),
        "hard": sample(bench.corpus.parts["valid"], bench.scaled(512, 32), BLOCK),
    }
    both = torch.cat([windows[:: len(windows) // 16][:16] for windows in kinds.values()])
    course: list[tuple[int, float]] = []
    start = look(model, torch.cat(list(kinds.values()))).mean_experts
    train(
        bench, model, data,
        Objective(balance=BALANCE, balance_norm="tokens", entropy=options["beta"]),
        look=lambda step, now: course.append((step, look(now, both).mean_experts)),
    )  # fmt: skip
    seen = {kind: look(model, windows) for kind, windows in kinds.items()}
    return {
        "start experts": start,
        "experts": sum(one.mean_experts for one in seen.values()) / 2,
        **{f"{kind} experts": one.mean_experts for kind, one in seen.items()},
        **{f"{kind} bits per byte": one.bits for kind, one in seen.items()},
        **{f"{kind} experts by layer": one.by_layer for kind, one in seen.items()},
        "experts by layer": [sum(pair) / 2 for pair in zip(*(one.by_layer for one in seen.values()), strict=True)],
        "experts over training": course,
    }


ARMS = (
    Arm(TOP_2, "two experts for every token, weights not renormalised", STEPS,
        {"router": "top_k", "with": {"k": 2, "renormalise": False}, "beta": 0.0}),
    *(Arm(name, f"threshold {THRESHOLD}, entropy loss {beta:g}", STEPS,
          {"router": "top_p", "with": {"p": THRESHOLD, "normalise": "none"}, "beta": beta})
      for name, beta in BETAS.items()),
)  # fmt: skip


def _difference(arms: Arms) -> Numbers:
    hard, easy = arms[PAPER]["hard experts"], arms[PAPER]["easy experts"]
    return {"hard": hard, "easy": easy, "hard - easy": hard - easy}


def _fall(arms: Arms) -> Numbers:
    start, end = arms[PAPER]["start experts"], arms[PAPER]["experts"]
    return {"start": start, "end": end, "end / start": end / start, "end / 4": end / 4}


def _means(arms: Arms) -> Numbers:
    return {f"beta {beta:g}": arms[name]["experts"] for name, beta in BETAS.items()}


def _nearest_to_two(arms: Arms) -> Numbers:
    name = min(BETAS, key=lambda one: abs(arms[one]["experts"] - 2))
    mine, theirs = arms[name]["hard bits per byte"], arms[TOP_2]["hard bits per byte"]
    return {"beta": BETAS[name], "experts": arms[name]["experts"], "top-p": mine, "top-2": theirs,
            "top-p - top-2": mine - theirs}  # fmt: skip


def _layers(arms: Arms) -> Numbers:
    return {f"layer {number + 1}": value for number, value in enumerate(arms[PAPER]["experts by layer"])}


CLAIMS = (
    Claim("a", "Hard sequences use more experts than easy ones: by 0.1 or more at beta 1e-4, in 3 of 3 seeds.",
          _difference, each(lambda n: n["hard - easy"] >= 0.1)),
    Claim("b", "Mean experts fall from about ceil(0.4 N) = 4 at step 0 to 60 % of what they were then or less, at "
          "beta 1e-4, in 3 of 3 seeds.", _fall, each(lambda n: n["end / start"] <= 0.6)),
    Claim("c", "Mean experts do not increase with beta over 0, 1e-4, 1e-2, in 3 of 3 seeds.",
          _means, each(lambda n: n["beta 0"] >= n["beta 0.0001"] >= n["beta 0.01"])),
    Claim("d", "At the beta whose mean is nearest to 2 experts, hard sequences cost at most 0.02 bits per byte more "
          "than with top-2, in 3 of 3 seeds.", _nearest_to_two, each(lambda n: n["top-p - top-2"] <= 0.02)),
    Claim("e", "The lowest layer uses more experts than the highest at beta 1e-4, in 3 of 3 seeds (three layers are "
          "weak evidence).", _layers, each(lambda n: n["layer 1"] > n[f"layer {LAYERS}"]), gated=False),
)  # fmt: skip

STUDY = Study(
    name="dynamic-routing",
    paper="Harder Tasks Need More Experts: Dynamic Routing in MoE Models (arXiv 2403.07652)",
    question="A threshold on the summed probability gives hard inputs more experts and easy ones fewer, and an entropy "
    "loss keeps the router from choosing many.",
    setting="Byte model, 3 layers of width 64, 8 experts of 64, 500 steps of 1024 bytes, AdamW 2e-3 cosine. Half of "
    "the sequences are easy (one of 64 random patterns of 2 to 8 letters, repeated), half are the text. Balance 1e-2.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column("experts", "experts", ".2f"), Column("easy experts", "easy", ".2f"),
        Column("hard experts", "hard", ".2f"), Column("experts by layer", "by layer", ".2f"),
        Column("easy bits per byte", "easy bits/byte"), Column("hard bits per byte", "hard bits/byte"),
    ),
    run=run,
)  # fmt: skip
