"""SMoE-Dropout (arXiv 2303.01610): does a model trained with growing k by a random router serve at any k?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.learning import BATCH, BLOCK, train, windows_of
from coterie.studies.measures import sample
from coterie.studies.predictions import bits
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.studies.twins import Shape, dense_twin, mixture, split_twin
from coterie.training import Objective, linear

STEPS, BALANCE = 400, 0.01
SHAPE = Shape(layers=3, dense=(), num_experts=8, inner=32, dense_inner=256)
EVERY_K = range(1, SHAPE.num_experts + 1)
HALF, ALL = SHAPE.num_experts // 2, SHAPE.num_experts
DENSE, LEARNED, RANDOM = "dense", "learned, k 4", "random, k 4"
GROWING, FULL = "SMoE-Dropout, k 4 to 8", "random, k 8"


def run(bench: Bench) -> Metrics:
    """Train one arm and measure it at every k."""
    options = bench.arm.options
    model = _model(bench)
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed)
    schedules = {"k": linear(*options["growth"])} if "growth" in options else {}
    balance = BALANCE if options.get("router") == "top_k" else 0.0
    train(bench, model, data, Objective(balance=balance), schedules=schedules)
    windows = sample(bench.corpus.parts["valid"], bench.scaled(1024, 16), BLOCK)
    return _dense_metrics(model, windows) if "router" not in options else _metrics(model, windows, options["k"])


def _model(bench: Bench) -> Any:
    options = bench.arm.options
    if "router" not in options:
        return dense_twin(SHAPE, bench.seed)
    given: dict[str, Any] = {"k": options["k"]}
    if options["router"] == "smoe_dropout":
        given["seed"] = 1000 * (bench.seed + 1)  # the layers' matrices have this seed and the next ones
    return mixture(SHAPE, bench.seed, options["router"], given)


def _metrics(model: Any, windows: Tensor, k: int) -> Metrics:
    curve = [bits(model, windows, k=k) for k in EVERY_K]
    return {"bits per byte": curve[k - 1], "curve": curve}


def _dense_metrics(model: Any, windows: Tensor) -> Metrics:
    """The dense model, and what becomes of it when it is cut into experts and not trained again."""
    cut = split_twin(SHAPE, model)
    return {"bits per byte": bits(model, windows), "curve when cut": [bits(cut, windows, k=k) for k in EVERY_K]}


ARMS = (
    Arm(DENSE, "one feed-forward of 256 in each layer", STEPS),
    Arm(LEARNED, f"a learned router, four of eight experts of 32, balance {BALANCE}", STEPS,
        {"router": "top_k", "k": HALF}),
    Arm(RANDOM, "a frozen random router, four experts", STEPS, {"router": "smoe_dropout", "k": HALF}),
    Arm(GROWING, "a frozen random router, four experts growing to eight along a line", STEPS,
        {"router": "smoe_dropout", "k": ALL, "growth": (HALF, ALL)}),
    Arm(FULL, "a frozen random router, eight experts throughout", STEPS, {"router": "smoe_dropout", "k": ALL}),
)  # fmt: skip


def _at(metrics: Metrics, k: int, curve: str = "curve") -> float:
    return float(metrics[curve][k - 1])


def _slim(arms: Arms) -> Numbers:
    points = {f"B({k})": _at(arms[GROWING], k) for k in (2, 4, 6, 8)}
    return {**points, "B(4) - B(8)": points["B(4)"] - points["B(8)"]}


def _overfit(arm: str) -> Callable[[Arms], Numbers]:
    def numbers(arms: Arms) -> Numbers:
        half, full = _at(arms[arm], HALF), _at(arms[arm], ALL)
        return {"B(4)": half, "B(8)": full, "B(8) - B(4)": full - half}

    return numbers


def _against(other: str) -> Callable[[Arms], Numbers]:
    """B(8) of SMoE-Dropout and of another arm, whose own number of experts it is where it has no k."""

    def numbers(arms: Arms) -> Numbers:
        mine = _at(arms[GROWING], ALL)
        theirs = _at(arms[other], ALL) if "curve" in arms[other] else float(arms[other]["bits per byte"])
        return {"SMoE-Dropout": mine, other: theirs, "difference": mine - theirs}

    return numbers


def _cut(arms: Arms) -> Numbers:
    whole, parts = float(arms[DENSE]["bits per byte"]), _at(arms[DENSE], ALL, "curve when cut")
    return {"dense": whole, "cut, k 8": parts, "|difference|": abs(parts - whole)}


CLAIMS = (
    Claim("a", "SMoE-Dropout: B(k) strictly decreases over k = 2, 4, 6, 8, and B(4) - B(8) is 0.01 or more, in 3 of 3 "
          "seeds.", _slim,
          each(lambda n: n["B(2)"] > n["B(4)"] > n["B(6)"] > n["B(8)"] and n["B(4) - B(8)"] >= 0.01)),
    Claim("b", "A learned router gains nothing beyond the k it was trained with: B(8) is at least B(4) - 0.005, in 3 "
          "of 3 seeds.", _overfit(LEARNED), each(lambda n: n["B(8) - B(4)"] >= -0.005)),
    Claim("c", "At k = 8 SMoE-Dropout is better than the learned router, in 3 of 3 seeds.",
          _against(LEARNED), each(lambda n: n["difference"] < 0)),
    Claim("d", "A trained dense model cut into 8 experts of equal weight, times 8, is the dense model at k = 8: within "
          "1e-4 bits per byte, in 3 of 3 seeds.", _cut, each(lambda n: n["|difference|"] <= 1e-4)),
    Claim("e", "At k = 8 SMoE-Dropout is better than the dense twin, in 3 of 3 seeds (a tie is expected at this size).",
          _against(DENSE), each(lambda n: n["difference"] < 0), gated=False),
    Claim("f", "At k = 8 growing k is better than k = 8 throughout, in 3 of 3 seeds: growth does it, not the random "
          "router.", _against(FULL), each(lambda n: n["difference"] < 0), gated=False),
    Claim("g", "A random router with four experts throughout gains nothing beyond them either: B(8) is at least "
          "B(4) - 0.005, in 3 of 3 seeds.", _overfit(RANDOM), each(lambda n: n["B(8) - B(4)"] >= -0.005), gated=False),
)  # fmt: skip

STUDY = Study(
    name="smoe-dropout",
    paper="Sparse MoE as the New Dropout: Scaling Dense and Self-Slimmable Transformers (arXiv 2303.01610)",
    question="A frozen random router and a number of experts that grows while the model learns give a model whose "
    "quality rises with every expert that is on; a learned router fits the number it was trained with.",
    setting="Byte model, 3 pre-norm layers of width 64, 8 gated experts of 32 (dense twin 256), 400 steps of 1024 "
    "bytes, AdamW 2e-3 cosine, no dropout. B(k): bits per byte of 1024 windows of 64 unseen bytes with k experts on.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column("bits per byte", "bits/byte"), Column("curve", "B(1) to B(8)"),
        Column("curve when cut", "cut, untrained"),
    ),
    run=run,
)  # fmt: skip
