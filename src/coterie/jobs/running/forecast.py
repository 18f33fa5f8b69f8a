"""What a run will read and how fast it will be: the store's own decisions on given routes, in measured seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coterie.jobs.running.budget import Budget
from coterie.jobs.running.routes import Routes
from coterie.models.checkpoint import Checkpoint
from coterie.store.blob import Blob, Key
from coterie.store.measure import Speeds
from coterie.store.simulate import Costs, Outcome, simulate
from coterie.store.traces import layer_of

# small operations (`Speeds.call`) that the interpreter's share of a step is worth, found with tiny models of 2 to 8
# layers and 1 to 8 experts per token: of a decoder layer, of one expert of it, of a step's head and sampling
_LAYER_CALLS, _EXPERT_CALLS, _STEP_CALLS = 340, 40, 400


@dataclass(frozen=True)
class Work:
    """Seconds of computing one decode step of the whole batch, reads left out.

    Attributes:
        weights: to bring dense weights, used experts and half a KV cache from memory.
        calls: that the interpreter and torch take for themselves.
        layer, expert: of one layer without its experts, and of one expert: both kinds together.
    """

    weights: float
    calls: float
    layer: float
    expert: float


@dataclass(frozen=True)
class Forecast:
    """Of one policy with so many slots. Bytes include the alignment that direct reads need.

    Attributes:
        prefill_bytes: read for the prompt, from an empty store.
        bytes_per_token: read for each token of the answer, batch and all.
        hit_rate: of the answer's uses of experts.
        tokens_per_second: of the answer, all sequences together; reads and computing overlap as in the store.
        disk_seconds, memory_seconds, call_seconds: per token, if that were all there is to do.
    """

    policy: str
    slots: int
    prefill_bytes: float
    bytes_per_token: float
    hit_rate: float
    tokens_per_second: float
    disk_seconds: float
    memory_seconds: float
    call_seconds: float

    @property
    def bound(self) -> str:
        """What takes most of a token's time: "disk", "memory" or "interpreter"."""
        shares = {"disk": self.disk_seconds, "memory": self.memory_seconds, "interpreter": self.call_seconds}
        return max(shares, key=lambda name: shares[name])

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"bound": self.bound}


class Forecaster:
    """Forecasts for one checkpoint, one request and one machine.

    Args:
        blobs: site and expert -> where it lies.
        routes: the request.
        speeds: of the machine.
        cache: bytes of the KV cache when it is full.
    """

    def __init__(
        self, checkpoint: Checkpoint, blobs: Mapping[Key, Blob], routes: Routes, speeds: Speeds, cache: int
    ) -> None:
        self._routes, self._speeds = routes, speeds
        names = [checkpoint.sites[number].name for number in routes.sites]
        self._sizes = {key: blob.slot_bytes for key, blob in blobs.items()}
        self._names = dict(enumerate(names))
        simulated = sum(checkpoint.sites[number].num_experts for number in routes.sites)
        self._share = simulated / checkpoint.num_experts
        # every simulated layer stands for so many
        self._layers = len(checkpoint.sites) / len(routes.sites)
        self.work = _work(checkpoint, routes, speeds, cache)
        read = sum(self._sizes.values()) / len(self._sizes)
        self._costs = Costs(speeds.disk.seconds(read), self.work.layer, self.work.expert)

    def forecast(self, policy: str, slots: int) -> Forecast:
        """Simulate the request with ``slots`` expert slots for the whole model."""
        routes, slots_here = self._routes, max(1, round(slots * self._share))
        prompt = simulate(routes.prefill, slots_here, policy, costs=self._costs)
        whole = simulate([*routes.prefill, *routes.decode], slots_here, policy, costs=self._costs)
        tokens = len(routes.decode) * routes.batch
        read = self._bytes(whole.reads[len(prompt.reads) :]) / tokens
        seconds = (whole.seconds - prompt.seconds) * self._layers / tokens
        work, batch = self.work, routes.batch
        return Forecast(
            policy=policy, slots=slots, prefill_bytes=self._bytes(prompt.reads), bytes_per_token=read,
            hit_rate=_hit_rate(whole, prompt), tokens_per_second=1 / seconds,
            disk_seconds=self._speeds.disk.seconds(read), memory_seconds=work.weights / batch,
            call_seconds=work.calls / batch,
        )  # fmt: skip

    def _bytes(self, reads: Iterable[Key]) -> float:
        read = sum(self._sizes[Key(self._names[layer_of(key.site)], key.expert)] for key in reads)
        return read * self._layers


def _work(checkpoint: Checkpoint, routes: Routes, speeds: Speeds, cache: int) -> Work:
    layers = len(checkpoint.sites)
    used = sum(len(experts) for step in routes.decode for experts in step) / len(routes.decode)
    used *= layers / len(routes.sites)
    dense = speeds.memory.seconds(_dense_read(checkpoint) + cache / 2)
    expert = speeds.memory.seconds(_expert_moved(checkpoint))
    calls = (_LAYER_CALLS * layers + _STEP_CALLS) * speeds.call
    return Work(
        weights=dense + used * expert,
        calls=calls + used * _EXPERT_CALLS * speeds.call,
        layer=(dense + calls) / layers,
        expert=expert + _EXPERT_CALLS * speeds.call,
    )


def _dense_read(checkpoint: Checkpoint) -> int:
    """Bytes of dense weights that a token reads: all, but of an embedding that is not the head too only its row."""
    if getattr(checkpoint.text, "tie_word_embeddings", False):
        return checkpoint.dense_bytes
    embedding = checkpoint.vocab_size * checkpoint.text.hidden_size * checkpoint.compute_dtype.itemsize
    return max(0, checkpoint.dense_bytes - embedding)


def _expert_moved(checkpoint: Checkpoint) -> float:
    """Bytes that pass memory for one use of an expert; a quantised one is read, written as floats and read again."""
    stored = checkpoint.expert_bytes / checkpoint.num_experts
    if checkpoint.quantization is None:
        return stored
    floats = sum(site.num_experts * site.shape.nbytes(site.dtype) for site in checkpoint.sites)
    return stored + 2 * floats / checkpoint.num_experts


def _hit_rate(whole: Outcome, prompt: Outcome) -> float:
    uses = whole.stats.uses - prompt.stats.uses
    return (whole.stats.hits - prompt.stats.hits) / uses if uses else 0.0


def smallest_share(forecaster: Forecaster, budget: Budget, tokens_per_second: float, policy: str) -> float | None:
    """The least share of experts that must be resident for so many tokens per second, found by halving.

    0 where one expert at a time is fast enough, None where even all are not.
    """

    def fast(slots: int) -> bool:
        return forecaster.forecast(policy, slots).tokens_per_second >= tokens_per_second

    if not fast(budget.experts):
        return None
    if fast(1):
        return 0.0
    low, high = 1, budget.experts  # high is fast enough, low is not
    while high - low > max(1, budget.experts // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if fast(middle) else (middle, high)
    return high / budget.experts
