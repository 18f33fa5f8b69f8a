"""AdaMoE (arXiv 2406.13233): can a trained top-2 model learn to spend fewer experts, by choosing null ones?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.models.attach import session_of
from coterie.ops.balance import switch_balance
from coterie.studies.claims import Arms, Claim, Metrics, Numbers, each
from coterie.studies.learning import BATCH, BLOCK, RATE, routed, routers_in, tiny_moe, train, windows_of
from coterie.studies.measures import Seen, correlation, look, sample
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.training import Objective, Windows
from coterie.training.schedules import piecewise

LAYERS, FIRST, SECOND, BALANCE, NULLS = 3, 500, 250, 0.01, 8
STAGE_1 = "stage 1"
TOP_2: tuple[str, dict[str, Any]] = ("top_k", {"k": 2, "softmax": "after"})
A, B, C, D, E = "a: top-2", "b: averaged nulls", "c: individual nulls", "d: top-1", "e: exact start"
BITS, TRUE, SPREAD, ALL_NULL = "bits per byte", "true experts", "spread of true experts", "all-null share"
START_GAP, NULL_GRADIENT = "start difference from a", "null gradient"


def run(bench: Bench) -> Metrics:
    """Stage 1: a top-2 model. Stage 2, from its weights: one way of going on."""
    model = tiny_moe(bench.seed, LAYERS, *TOP_2)
    windows = sample(bench.corpus.parts["valid"], bench.scaled(1024, 32), BLOCK)
    if bench.arm.name == STAGE_1:
        train(bench, model, _data(bench), Objective(balance=BALANCE))
        torch.save(model.state_dict(), bench.place / "weights.pt")
        return counts(look(model, windows))
    model.load_state_dict(torch.load(bench.earlier[STAGE_1] / "weights.pt", weights_only=True))
    routed(model, bench.seed, bench.arm.options["router"], bench.arm.options["with"])
    return _second_stage(bench, model, windows)


def _second_stage(bench: Bench, model: Any, windows: Tensor) -> Metrics:
    nulls = bench.arm.options.get("nulls")
    start, gradients = look(model, windows), null_gradients(model, windows[:BATCH]) if nulls else {}
    objective = Objective(balance=piecewise([0.02, 1e-4], [0.5]), nulls=nulls) if nulls else Objective(balance=BALANCE)
    train(bench, model, _data(bench), objective, rate=RATE / 3)
    seen = look(model, windows)
    torch.save({"start": start.loss, "end": seen.loss}, bench.place / "losses.pt")
    beside = _against_a(bench.earlier[A], start, seen) if A in bench.earlier else {}
    return {"start bits per byte": start.bits, **counts(seen), **gradients, **beside}


def _data(bench: Bench) -> Windows:
    """Of each stage, the same for all its arms."""
    order = 2 * bench.seed + (bench.arm.name != STAGE_1)
    return windows_of(bench.corpus.parts["train"], bench.steps * BATCH, order)


def null_gradients(model: Any, windows: Tensor) -> dict[str, float]:
    """Norms of the gradients that null rows get, from the next byte alone and from the balance loss alone."""
    session, rows = session_of(model), [router.score.null_rows for router in routers_in(model)]
    assert session is not None
    session.keep = True
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    balance = sum(switch_balance(routing, num_nulls=NULLS) for routing in session.routings.values())
    session.keep, session.routings = False, {}
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:])
    return {NULL_GRADIENT: _norm(loss, rows), "null gradient of the balance loss": _norm(balance, rows)}


def _norm(loss: Any, rows: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, rows, retain_graph=True, allow_unused=True)
    return sum(float(one.square().sum()) for one in gradients if one is not None) ** 0.5


def counts(seen: Seen) -> dict[str, Any]:
    """Of true experts. The spread is over tokens, and the mean of the layers'."""
    experts = seen.experts.double()
    return {
        BITS: seen.bits,
        TRUE: seen.mean_experts,
        "true experts by layer": seen.by_layer,
        SPREAD: float(experts.flatten(1).std(1, correction=0).mean()),
        ALL_NULL: float((experts == 0).double().mean()),
    }


def _against_a(place: Path, start: Seen, seen: Seen) -> dict[str, float]:
    """Beside arm a of the same seed: its losses at the start, and where it finds bytes hard."""
    losses = torch.load(place / "losses.pt", weights_only=True)
    spent = seen.experts.double().mean(0)[:, :-1]  # at the token that predicts
    return {
        START_GAP: float((losses["start"] - start.loss).abs().max()),
        "correlation with the loss of a": correlation(losses["end"], spent),
    }


def _nulls(name: str, what: str, k: int, balance: str) -> Arm:
    options = {"router": "adamoe", "with": {"k": k, "num_nulls": NULLS, "copied": True}, "nulls": balance}
    return Arm(name, what, SECOND, options, after=(STAGE_1, A))


def _top_k(name: str, what: str, k: int) -> Arm:
    return Arm(name, what, SECOND, {"router": "top_k", "with": {"k": k, "softmax": "after"}}, after=(STAGE_1,))


ARMS = (
    Arm(STAGE_1, "top-2 from scratch, balance 0.01", FIRST, shown=False),
    _top_k(A, "goes on with top-2", 2),
    _nulls(B, "8 nulls with copied rows, k 3, balanced as one", 3, "averaged"),
    _nulls(C, "the same, each null balanced by itself", 3, "individual"),
    _top_k(D, "goes on with top-1, the cheap way", 1),
    _nulls(E, "8 nulls with copied rows, k 4: the same function at the start", 4, "averaged"),
)


def _bits(*names: str) -> Any:
    return lambda arms: {name[0]: arms[name][BITS] for name in names}


def _start(arms: Arms) -> Numbers:
    return {"largest difference": arms[E][START_GAP], "a": arms[A]["start bits per byte"],
            "e": arms[E]["start bits per byte"]}  # fmt: skip


def _null_gradient(arms: Arms) -> Numbers:
    return {"next byte": arms[B][NULL_GRADIENT], "balance": arms[B]["null gradient of the balance loss"]}


def _correlation(arms: Arms) -> Numbers:
    return {"correlation": arms[B]["correlation with the loss of a"]}


CLAIMS = (
    Claim("1", "Arm b spends at most 1.75 true experts per token (12.5 % fewer than top-2, or less), in 3 of 3 seeds.",
          lambda arms: {"true": arms[B][TRUE]}, each(lambda n: n["true"] <= 1.75)),
    Claim("2", "Arm b costs at most 0.02 bits per byte more than arm a, in 3 of 3 seeds.",
          _bits(B, A), each(lambda n: n["b"] <= n["a"] + 0.02)),
    Claim("3", "Arm b costs fewer bits per byte than arm d, in 3 of 3 seeds.",
          _bits(B, D), each(lambda n: n["b"] < n["d"])),
    Claim("4", "The standard deviation over tokens of arm b's true experts (mean of the layers) is 0.3 or more, in 3 "
          "of 3 seeds.", lambda arms: {"deviation": arms[B][SPREAD]}, each(lambda n: n["deviation"] >= 0.3)),
    Claim("5", "Arm e starts at exactly arm a's loss: no byte differs by more than 1e-6 nats, in 3 of 3 seeds.",
          _start, each(lambda n: n["largest difference"] <= 1e-6)),
    Claim("6", "With coefficient 0 null rows get no gradient at all, while the balance loss gives them one, in 3 of 3 "
          "seeds.", _null_gradient, each(lambda n: n["next byte"] == 0 and n["balance"] > 0)),
    Claim("7", "Arm b spends more true experts where arm a finds bytes hard: a correlation above 0, in 3 of 3 seeds.",
          _correlation, each(lambda n: n["correlation"] > 0), gated=False),
)  # fmt: skip

STUDY = Study(
    name="adamoe",
    paper="AdaMoE: Token-Adaptive Routing with Null Experts for Mixture-of-Experts Language Models (arXiv 2406.13233)",
    question="With null experts to choose and a larger k, a trained model learns to spend fewer true experts, more on "
    "some tokens than on others, at no loss.",
    setting="Byte model, 3 layers of width 64, 8 experts of 64. Stage 1: top-2, 500 steps of 1024 bytes, AdamW 2e-3 "
    "cosine, balance 0.01. Stage 2 from there: 250 steps at a third of the rate; with nulls, balance 0.02 for half of "
    "them, then 1e-4.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column(BITS, "bits/byte", ".4f"), Column(TRUE, "true experts", ".2f"), Column(SPREAD, "deviation", ".2f"),
        Column(ALL_NULL, "all null", ".1%"), Column("true experts by layer", "by layer", ".2f"),
        Column("start bits per byte", "start bits/byte", ".4f"),
        Column("correlation with the loss of a", "correlation", ".3f"),
    ),
    run=run,
)  # fmt: skip
