"""THOR (arXiv 2110.04260): do two random passes that must agree make any random path a good model?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from coterie.models.attach import session_of
from coterie.models.find import find_sites
from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.learning import BATCH, BLOCK, train, windows_of
from coterie.studies.measures import sample
from coterie.studies.predictions import bits, bits_per_byte, disagreement, ensemble, predictions
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.studies.twins import Shape, dense_twin, mixture
from coterie.training import Consistency, Objective, residual_dropout

ONE_PASS, TWO_PASSES = 600, 300  # steps of equal cost
SHAPE = Shape(layers=4, dense=(1, 3), num_experts=4, inner=256, dense_inner=256)
DROPOUT, BALANCE, ALPHA = 0.1, 0.01, 1.0
SEEDS, PATHS = 10, 4  # draws that the spread is over, and that an ensemble is of
THOR, RANDOM, SWITCH, DENSE, R_DROP = "THOR, alpha 1", "random experts, alpha 0", "Switch", "dense", "R-Drop"


def run(bench: Bench) -> Metrics:
    """Train one arm; measure it, under every kind of draw where it draws."""
    options = bench.arm.options
    model = _model(bench)
    undo = residual_dropout(model, DROPOUT)
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed)
    alpha = options.get("alpha")
    balance = BALANCE if options.get("router") == "top_k" else 0.0
    train(bench, model, data, Objective(balance=balance, consistency=None if alpha is None else Consistency(alpha)))
    undo()
    windows = sample(bench.corpus.parts["valid"], bench.scaled(512, 16), BLOCK)
    return _drawn(model, windows) if options.get("router") == "thor" else {"bits per byte": bits(model, windows)}


def _model(bench: Bench) -> Any:
    options = bench.arm.options
    if "router" not in options:
        return dense_twin(SHAPE, bench.seed)
    model = mixture(SHAPE, bench.seed, options["router"], options["with"])
    if "draw" in options:  # while learning: one expert per layer for the whole batch and pass
        session: Any = session_of(model)
        session.base = replace(session.base, overrides={"draw": options["draw"]})
    return model


def _drawn(model: Any, windows: Tensor) -> Metrics:
    """Bits per byte of each kind of draw, over several seeds of it where that is what is asked."""
    token = [predictions(model, windows, seed=seed, draw="token") for seed in (0, 1)]
    path = [predictions(model, windows, seed=seed, draw="batch") for seed in range(PATHS)]
    by_token = [bits(model, windows, seed=seed, draw="token") for seed in range(SEEDS)]
    by_path = [bits(model, windows, seed=seed, draw="batch") for seed in range(SEEDS)]
    by_sequence = [bits(model, windows, seed=seed, draw="sequence") for seed in range(SEEDS)]
    return {
        "bits per byte": fmean(by_token),
        "by sequence": fmean(by_sequence),
        "by path": fmean(by_path),
        "expert average": bits(model, windows, draw="average"),
        "ensemble": bits_per_byte(ensemble(path), windows),
        "disagreement": disagreement(*token),
        "disagreement of paths": fmean(disagreement(path[n], path[n + 1]) for n in range(0, PATHS, 2)),
        "spread": stdev(by_token),
        "spread of paths": stdev(by_path),
        "expert distance": fmean(expert_distance(site.experts) for site in find_sites(model)),
    }


@torch.no_grad()
def expert_distance(experts: Any) -> float:
    """Mean distance of two experts' weights over the mean length of one: 0 alike, about 1.4 unrelated."""
    stacks = [weight.flatten(1) for weight in experts.parameters()]
    rows = torch.cat(stacks, dim=1).double()
    between = torch.cdist(rows, rows)
    count = len(rows)
    return float(between.sum() / (count * (count - 1)) / rows.norm(dim=1).mean())


_DRAWN = {"router": "thor", "with": {"k": 1, "draw": "token"}, "draw": "batch"}
ARMS = (
    Arm(THOR, "one of four experts of 256 drawn per layer and pass; the two passes must agree", TWO_PASSES,
        {**_DRAWN, "alpha": ALPHA}),
    Arm(RANDOM, "the same draws, and nothing draws the passes together", TWO_PASSES, {**_DRAWN, "alpha": 0.0}),
    Arm(SWITCH, f"the best of four experts by a learned router, balance {BALANCE}", ONE_PASS,
        {"router": "top_k", "with": {"k": 1, "renormalise": False}}),
    Arm(DENSE, "one feed-forward of 256 in each layer", ONE_PASS),
    Arm(R_DROP, "the dense model with two passes that must agree: THOR with one expert", TWO_PASSES, {"alpha": ALPHA}),
)  # fmt: skip


def _both(metric: str) -> Callable[[Arms], Numbers]:
    """A metric of THOR and of random experts, and their ratio."""

    def numbers(arms: Arms) -> Numbers:
        held, free = float(arms[THOR][metric]), float(arms[RANDOM][metric])
        return {"alpha 1": held, "alpha 0": free, "ratio": held / free if free else math.nan}

    return numbers


def _to_average(arms: Arms) -> Numbers:
    token, average = arms[THOR]["bits per byte"], arms[THOR]["expert average"]
    return {"token": token, "expert average": average, "difference": token - average}


def _against(other: str) -> Callable[[Arms], Numbers]:
    def numbers(arms: Arms) -> Numbers:
        mine, theirs = arms[THOR]["bits per byte"], arms[other]["bits per byte"]
        return {"THOR": mine, other: theirs, "difference": mine - theirs}

    return numbers


CLAIMS = (
    Claim("a", "Two draws of an expert per token disagree at most a third as much with alpha 1 as with alpha 0, in 3 "
          "of 3 seeds.", _both("disagreement"), each(lambda n: n["ratio"] <= 1 / 3)),
    Claim("b", "Bits per byte spread less over 10 seeds of the draw per token with alpha 1, in 3 of 3 seeds.",
          _both("spread"), each(lambda n: n["alpha 1"] < n["alpha 0"])),
    Claim("c", "A single random path costs fewer bits per byte with alpha 1, mean over 10 paths, in 3 of 3 seeds.",
          _both("by path"), each(lambda n: n["alpha 1"] < n["alpha 0"])),
    Claim("d", "THOR's draw per token costs at most 0.02 bits per byte more than the average of all experts, in 3 of 3 "
          "seeds.", _to_average, each(lambda n: n["difference"] <= 0.02)),
    Claim("e", "Whole paths disagree at most a third as much with alpha 1, in 3 of 3 seeds.",
          _both("disagreement of paths"), each(lambda n: n["ratio"] <= 1 / 3), gated=False),
    Claim("f", "Bits per byte spread less over 10 paths with alpha 1, in 3 of 3 seeds.",
          _both("spread of paths"), each(lambda n: n["alpha 1"] < n["alpha 0"]), gated=False),
    Claim("g", "THOR is better than Switch at equal compute, in 3 of 3 seeds (the paper: on translation, where data "
          "are few; this model has seen too little to overfit).",
          _against(SWITCH), each(lambda n: n["difference"] < 0), gated=False),
    Claim("h", "THOR is better than the dense twin at equal compute, in 3 of 3 seeds.",
          _against(DENSE), each(lambda n: n["difference"] < 0), gated=False),
    Claim("i", "THOR is better than R-Drop, which is the same with one expert, in 3 of 3 seeds.",
          _against(R_DROP), each(lambda n: n["difference"] < 0), gated=False),
)  # fmt: skip

STUDY = Study(
    name="thor",
    paper="Taming Sparsely Activated Transformer with Stochastic Experts (arXiv 2110.04260)",
    question="Experts drawn at random, and two passes that must agree, make every random path a good model and beat a "
    "learned router.",
    setting="Byte model, 4 pre-norm layers of width 64, 4 gated experts of 256 in the first and third, dense "
    "feed-forwards of 256 elsewhere, dropout 0.1 on what joins the residual stream, 1024 bytes a step, 300 steps of "
    "two passes or 600 of one, AdamW 2e-3 cosine. Measured on 512 windows of 64 unseen bytes.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column("bits per byte", "bits/byte"), Column("by sequence", "per sequence"), Column("by path", "one path"),
        Column("expert average", "average"), Column("ensemble", "4 paths"),
        Column("disagreement", "disagreement", ".4f"), Column("spread", "spread", ".1e"),
        Column("expert distance", "distance", ".2f"),
    ),
    run=run,
)  # fmt: skip
