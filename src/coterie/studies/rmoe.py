"""Layerwise recurrent router (arXiv 2408.06793): does a state handed from layer to layer make a better router?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from coterie.routing import RouteContext
from coterie.studies.claims import Arms, Claim, Metrics, Numbers, at_least, each, on_average, together
from coterie.studies.learning import BATCH, BLOCK, routers_in, tiny_moe, train, windows_of
from coterie.studies.measures import Seen, adjusted_mutual_information, look, sample
from coterie.studies.study import Arm, Bench, Column, Study
from coterie.training import Objective

LAYERS, STEPS, STATE, BALANCE = 4, 500, 32, 0.01
SMOE, RMOE, NP, DETACH = "SMoE", "RMoE", "RMoE-NP", "RMoE-detach"
GRADIENT, BITS, RATIO, SHARED = "gradient at layer 1", "bits per byte", "top1/top2", "adjusted MI"


def run(bench: Bench) -> Metrics:
    """Train one arm and look at its routers."""
    options: Mapping[str, Any] = bench.arm.options
    model = tiny_moe(bench.seed, LAYERS, options["router"], options["with"])
    data = windows_of(bench.corpus.parts["train"], bench.steps * BATCH, bench.seed)
    train(bench, model, data, Objective(balance=BALANCE))
    windows = sample(bench.corpus.parts["valid"], bench.scaled(2048, 32), BLOCK)
    seen = look(model, windows)
    return {
        BITS: seen.bits,
        RATIO: float(seen.ratio.median()),
        "gate entropy": float(seen.entropy.double().mean()),
        GRADIENT: depth_gradient(model, windows[:BATCH]),
        **_shared(seen),
    }


def _shared(seen: Seen) -> dict[str, Any]:
    """What the first choices of neighbouring layers tell about each other."""
    pairs = [adjusted_mutual_information(*pair) for pair in zip(seen.first[:-1], seen.first[1:], strict=True)]
    adjusted, baseline = zip(*pairs, strict=True)
    return {
        SHARED: fmean(adjusted),
        "adjusted MI by pair of layers": list(adjusted),
        "MI of shuffled tokens": fmean(baseline),
    }


@dataclass
class _Asked:
    """What a router was asked in one forward."""

    router: Any
    x: Tensor
    ctx: RouteContext


def depth_gradient(model: Any, windows: Tensor) -> float:
    """The norm of the gradient that the last layer's logits send to the first router's projection, by the carry alone.

    Every router's input is detached, so no other way is left. The logits' mean square over tokens is what is derived.
    """
    asked = _asked(model, windows)
    carry: Tensor | None = None
    for one in asked:
        routing = one.router(one.x.detach(), one.ctx.at(one.ctx.site, carry))
        carry = routing.carry
    assert routing.logits is not None
    score = asked[0].router.score
    first = score.projector if hasattr(score, "projector") else score.weight
    (gradient,) = torch.autograd.grad(routing.logits.square().sum(1).mean(), [first], allow_unused=True)
    return 0.0 if gradient is None else float(gradient.norm())


def _asked(model: Any, windows: Tensor) -> list[_Asked]:
    """Each router with what it was given when ``windows`` went through the model, in the order of the layers."""
    asked: list[_Asked] = []
    handles = [
        router.register_forward_pre_hook(lambda router, args: asked.append(_Asked(router, args[0], args[1])))
        for router in routers_in(model)
    ]
    with torch.no_grad():
        model(input_ids=windows, use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(asked) == len(handles)
    return asked


def _recurrent(name: str, what: str, carry: str) -> Arm:
    return Arm(name, what, STEPS, {"router": "rmoe", "with": {"k": 2, "state": STATE, "carry": carry}})


ARMS = (
    Arm(SMOE, "a linear router in each layer", STEPS, {"router": "top_k", "with": {"k": 2, "softmax": "after"}}),
    _recurrent(RMOE, "a GRU of 32 numbers hands its state from layer to layer", "full"),
    _recurrent(NP, "the same GRU, starting from zeros in every layer", "none"),
    _recurrent(DETACH, "the state is handed on without its gradient", "detach"),
)


def _gradients(arms: Arms) -> Numbers:
    return {name: arms[name][GRADIENT] for name in (RMOE, NP, DETACH)}


def _of(metric: str, *names: str) -> Any:
    return lambda arms: {name: arms[name][metric] for name in names}


def _below_smoe(numbers: Numbers) -> bool:
    return numbers[RMOE] < numbers[SMOE]


def _below_np(numbers: Numbers) -> bool:
    return numbers[RMOE] < numbers[NP]


CLAIMS = (
    Claim("a", "The last layer's logits send a gradient to the first router's projection through the state alone: "
          "above 0 for RMoE, exactly 0 for RMoE-NP and RMoE-detach, in 3 of 3 seeds.",
          _gradients, each(lambda n: n[RMOE] > 0 and n[NP] == 0 and n[DETACH] == 0)),
    Claim("b", "The median ratio of the best to the second probability is lower in RMoE than in SMoE, in 3 of 3 seeds.",
          _of(RATIO, RMOE, SMOE), each(_below_smoe)),
    Claim("c", "RMoE costs at most 0.01 bits per byte more than SMoE, on average.",
          _of(BITS, RMOE, SMOE), on_average(lambda n: n[RMOE] <= n[SMOE] + 0.01)),
    Claim("d", "RMoE costs fewer bits per byte than RMoE-NP and than SMoE on average, and for each in 2 of 3 seeds or "
          "more (at this length seeds may hide it: a failure is not shown, not refuted).",
          _of(BITS, RMOE, NP, SMOE),
          together(on_average(lambda n: _below_smoe(n) and _below_np(n)), at_least(2, _below_smoe),
                   at_least(2, _below_np)), failure="not shown"),
    Claim("e", "The first choices of neighbouring layers tell more about each other in RMoE than in SMoE (adjusted "
          "mutual information), in 3 of 3 seeds.",
          _of(SHARED, RMOE, SMOE), each(lambda n: n[RMOE] > n[SMOE]), gated=False),
)  # fmt: skip

STUDY = Study(
    name="rmoe",
    paper="Layerwise Recurrent Router for Mixture-of-Experts (arXiv 2408.06793)",
    question="A router that remembers how its token was routed in the layers below, through a small GRU, decides "
    "better than one that looks at the hidden state alone.",
    setting="Byte model, 4 layers of width 64, 8 experts of 64, top-2, state of 32, 500 steps of 1024 bytes, AdamW "
    "2e-3 cosine, balance 0.01.",
    arms=ARMS,
    claims=CLAIMS,
    columns=(
        Column(BITS, "bits/byte", ".4f"), Column(RATIO, "top1/top2", ".2f"), Column("gate entropy", "gate entropy"),
        Column(SHARED, "adjusted MI"), Column("MI of shuffled tokens", "shuffled MI", ".4f"),
        Column(GRADIENT, "gradient", ".2e"),
    ),
    run=run,
)  # fmt: skip
