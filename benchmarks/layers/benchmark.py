"""All cases in order: compare the answers, then time who was right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coterie.experts import FFN, FFNShape
from coterie.routing import Routing
from layers.answers import TOLERANCE, errors, results
from layers.arms import ARMS, PEERS, Contest
from layers.limits import measure
from layers.shapes import SHAPES, LayerShape
from layers.timing import Flush, Rest, interleaved

SLOW = 6.0  # seconds of a first run, above which it is the only one
_SAMPLES = 8  # different tokens in one timed run of a single token: one alone is as short as the noise

Say = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What the user asked for. ``pause``: seconds to rest after each minute of measuring."""

    shapes: tuple[str, ...]
    tokens: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    backward: tuple[bool, ...]
    seed: int
    pause: float = 0.0


def run(choice: Choice, say: Say) -> Iterator[Record]:
    """A record per case, as they end; those of kind "limits" and "half" in between."""
    flush, rest = Flush(), Rest(choice.pause)
    for dtype in choice.dtypes:
        limits = measure(dtype)
        yield {"kind": "limits", "dtype": str(dtype), "bandwidth": limits.bandwidth, "flops": limits.flops}
        for name in choice.shapes:
            contest = Contest(SHAPES[name], dtype, choice.seed)
            for backward in choice.backward:
                for tokens in choice.tokens:
                    say(f"{name}, {dtype}, {tokens} tokens, {'forward and backward' if backward else 'forward'}")
                    record = _case(contest, tokens, backward, flush, choice.seed)
                    rest()
                    bound = limits.seconds(SHAPES[name], dtype, tokens, backward)
                    yield record | {"kind": "case", "bound": bound}
                if backward and max(choice.tokens) > 1:
                    yield _half(SHAPES[name], dtype, max(choice.tokens), flush, choice.seed)


def _case(contest: Contest, tokens: int, backward: bool, flush: Flush, seed: int) -> Record:
    x = contest.tokens(tokens, seed)
    found, first = {}, {}
    arms = contest.arms(backward)
    for arm in arms:
        began = time.perf_counter()
        found[arm] = results(contest, arm, x, backward)
        first[arm] = time.perf_counter() - began
    wrong = {
        a: e
        for a, e in errors(found, next(peer for peer in PEERS if peer in arms)).items()
        if not e <= TOLERANCE[contest.dtype]
    }
    del found
    samples = _SAMPLES if tokens == 1 else 1
    calls = samples * contest.shape.copies

    def run_of(arm: str, number: int) -> Callable[[], None]:
        """Tokens of its own in every round, as training has: libraries make kernels for numbers of rows they meet."""
        own = contest.tokens(tokens * samples, seed + 1 + number * len(ARMS) + ARMS.index(arm))
        return partial(_pass, contest, arm, list(own.split(tokens)), backward)

    timed = {arm: partial(run_of, arm) for arm in arms if arm not in wrong and first[arm] < SLOW}

    def prepare() -> None:
        contest.forget_gradients()
        flush()

    seconds = {arm: [s / calls for s in taken] for arm, taken in interleaved(timed, prepare).items()}
    contest.forget_gradients()
    once = {arm: [first[arm]] for arm in arms if arm not in wrong and arm not in timed}
    return {
        "shape": contest.shape.name, "dtype": str(contest.dtype), "tokens": tokens, "backward": backward,
        "seconds": seconds | once, "once": sorted(once), "wrong": wrong,
    }  # fmt: skip


def _pass(contest: Contest, arm: str, xs: list[Tensor], backward: bool) -> None:
    for x in xs:
        for layer in contest.layers[arm]:
            if backward:
                y = layer(x.detach().requires_grad_())
                y.backward(torch.ones_like(y))
            else:
                with torch.no_grad():
                    layer(x)


def _half(shape: LayerShape, dtype: torch.dtype, tokens: int, flush: Flush, seed: int) -> Record:
    """Our experts alone with all assignments and with half of them: items have K experts or fewer, some none."""
    torch.manual_seed(seed)
    ffn = FFN(shape.experts, FFNShape(shape.width, shape.inner)).to(dtype)
    x = torch.randn(tokens, shape.width).to(dtype)

    def routing(share: float) -> Routing:
        chosen = torch.rand(tokens, shape.experts).topk(shape.top_k).indices
        whole = Routing.from_padded(torch.rand(tokens, shape.top_k), chosen, shape.experts)
        kept = torch.randperm(whole.num_assignments)[: int(share * whole.num_assignments)].sort().values
        return Routing(whole.item[kept], whole.expert[kept], whole.weight[kept], tokens, shape.experts)

    def train(routing: Routing) -> None:
        y = ffn(x.detach().requires_grad_(), routing)
        y.backward(torch.ones_like(y))

    def run_of(share: float, number: int) -> Callable[[], None]:
        return partial(train, routing(share))

    def prepare() -> None:
        ffn.zero_grad(set_to_none=True)
        flush()

    runs = {name: partial(run_of, share) for name, share in (("all", 1.0), ("half", 0.5))}
    for make in runs.values():
        make(0)()
    return {
        "kind": "half", "shape": shape.name, "dtype": str(dtype), "tokens": tokens,
        "seconds": interleaved(runs, prepare),
    }  # fmt: skip
