"""One arm, once: `python -m offloading.worker SPEC RESULT`, in a process (and memory group) of its own.

Every arm feeds the same tokens and takes the same routes, so that all of them compute the same logits.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offloading.arms import ARMS
from offloading.counters import ProcessorTime, anonymous_bytes, device_bytes, major_faults
from offloading.routes import ForcedRoutes, make_routes
from offloading.scales import SCALES
from offloading.synchronous import load_then_compute

_COUNTED = (
    "hits", "late", "misses", "stall_seconds", "prefetches", "useful", "bytes_read", "prefetch_bytes", "read_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What to run, where, and with how much.

    Attributes:
        memory: bytes for Coterie's own budget; 0 leaves room for every expert.
        slots: expert slots, where no budget is to decide; 0 otherwise.
        prompt, decode: tokens.
        logits: where to write the logits of every step [1 + decode, V] float32.
    """

    arm: str
    routes: str
    scale: str
    checkpoint: str
    offload_folder: str
    logits: str
    memory: int
    slots: int
    prompt: int
    decode: int
    seed: int


def main(spec_path: str, result_path: str) -> None:
    """Run the spec and write what was measured as JSON."""
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    Path(result_path).write_text(json.dumps(run(spec)))


def run(spec: Spec) -> dict[str, Any]:
    """Load, then prompt and decode under the clock."""
    import_peers()
    baseline = anonymous_bytes()
    began = time.perf_counter()
    model = _model(spec)
    loading = time.perf_counter() - began
    scale = SCALES[spec.scale]
    routes = make_routes(spec.routes, scale, spec.prompt + spec.decode, spec.seed)
    forced = ForcedRoutes(model, routes)
    draw = torch.Generator().manual_seed(spec.seed)
    ids = torch.randint(2, scale.vocab, (1, spec.prompt + spec.decode), generator=draw)
    if ARMS[spec.arm].rehearse:
        _generate(model, ids, spec, [])
        forced.rewind()
    steps: list[dict[str, Any]] = []
    before, start = ProcessorTime.now(), Snapshot.take(model)
    logits = _generate(model, ids, spec, steps)
    np.save(spec.logits, logits.numpy())
    return {
        "baseline_bytes": baseline, "anonymous_bytes": anonymous_bytes(), "load_seconds": loading, "steps": steps,
        "start": asdict(start), "foreign_share": ProcessorTime.now().foreign_share(before),
        "threads": torch.get_num_threads(), "slots": _slots(model), "budget": _budget(model),
    }  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """Counters so far; figures of a step are differences. ``store`` is empty for the peers."""

    device_bytes: int
    major_faults: int
    store: dict[str, Any]

    @classmethod
    def take(cls, model: Any) -> Snapshot:
        return cls(device_bytes(), major_faults(), _store_record(model))


@torch.no_grad()
def _generate(model: Any, ids: torch.Tensor, spec: Spec, steps: list[dict[str, Any]]) -> torch.Tensor:
    """[1 + decode, V] float32: the logits after the prompt and after every given token; appends to ``steps``."""
    cache, rows = None, []
    for start, end in [(0, spec.prompt), *((p, p + 1) for p in range(spec.prompt, ids.shape[1]))]:
        began = time.perf_counter()
        output = model(ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        row = output.logits[0, -1]
        row.argmax().item()  # a sampler would look at it here
        seconds = time.perf_counter() - began
        cache = output.past_key_values
        rows.append(row.float())
        steps.append({"seconds": seconds, **asdict(Snapshot.take(model))})
    return torch.stack(rows)


def _model(spec: Spec) -> Any:
    arm, checkpoint = ARMS[spec.arm], Path(spec.checkpoint)
    if arm.kind == "mapped":
        from offloading.mapped import mapped_model

        return mapped_model(checkpoint)
    if arm.kind == "accelerated":
        from offloading.accelerated import accelerated_model

        return accelerated_model(checkpoint, Path(spec.offload_folder))
    import coterie

    options: dict[str, Any] = dict(arm.options) | ({"slots": spec.slots} if spec.slots else {})
    model = coterie.load(checkpoint, spec.memory or None, context=spec.prompt + spec.decode, **options)
    if not arm.overlap:
        load_then_compute(model.coterie.store)
    return model


def import_peers() -> None:
    """What every arm loads before its model."""
    import accelerate  # noqa: F401
    from transformers import OlmoeForCausalLM  # noqa: F401


def _store_record(model: Any) -> dict[str, Any]:
    if not hasattr(model, "coterie"):
        return {}
    stats = model.coterie.stats()
    return {name: getattr(stats, name) for name in _COUNTED}


def _slots(model: Any) -> int:
    return model.coterie.budget.slots if hasattr(model, "coterie") else 0


def _budget(model: Any) -> dict[str, Any]:
    return model.coterie.budget.as_record() if hasattr(model, "coterie") else {}


if __name__ == "__main__":
    main(*sys.argv[1:])
