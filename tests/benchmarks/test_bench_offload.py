"""The offload benchmark on its small scale: the model on disk, the routes, and every arm in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offloading.accelerated import make_offload_folder
from offloading.answers import TOLERANCE, digest, error
from offloading.arms import ARMS, JUDGED, PEER, RESIDENT
from offloading.bounds import belady_bytes
from offloading.checkpoint import make_checkpoint, shard_files, tensor_shapes
from offloading.routes import ForcedRoutes, RouteTable, make_routes
from offloading.scales import SCALES, Scale
from offloading.worker import Spec, run
from transformers import AutoModelForCausalLM

SMALL = SCALES["small"]
TINY = Scale("tiny", 2, 6, 2, 32, 16, 64, 4, 3, 2**30)
PROMPT, DECODE = 4, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bench"), SMALL)


# the model on disk


def test_the_checkpoint_loads_with_transformers(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path, TINY)
    model, info = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) * 2 == TINY.dense_bytes + TINY.experts_bytes
    assert len(shard_files(made)) == TINY.shards
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensor_shapes(TINY))


def test_a_layer_lies_in_two_shards(checkpoint: Path) -> None:
    homes = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    layers = [{home for name, home in homes.items() if f"layers.{n}." in name} for n in range(SMALL.layers)]
    assert any(len(homes) > 1 for homes in layers)


def test_the_checkpoint_is_made_once(tmp_path: Path) -> None:
    first = shard_files(make_checkpoint(tmp_path, TINY))[0].stat().st_mtime_ns
    assert shard_files(make_checkpoint(tmp_path, TINY))[0].stat().st_mtime_ns == first
    wider = replace(TINY, vocab=80)
    assert shard_files(make_checkpoint(tmp_path, wider))[0].stat().st_mtime_ns > first


def test_the_full_scale_is_five_gib() -> None:
    full = SCALES["full"]
    assert full.experts_bytes + full.dense_bytes == pytest.approx(5.07 * 2**30, rel=0.01)


# routes


def test_sticky_routes_keep_about_half() -> None:
    table = make_routes("sticky", SMALL, 100)
    assert 0.3 <= table.kept_share() <= 0.6
    assert make_routes("uniform", SMALL, 100).kept_share() == pytest.approx(SMALL.top_k / SMALL.experts, abs=0.03)


@pytest.mark.parametrize("kind", ["uniform", "sticky"])
def test_routes_are_valid_and_seeded(kind: str) -> None:
    table, again, other = (make_routes(kind, SMALL, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(table.indices, again.indices)
    assert not torch.equal(table.indices, other.indices)
    assert table.indices.sort(-1).values.diff(dim=-1).gt(0).all(), "an expert twice"
    assert table.indices.min() >= 0
    assert table.indices.max() < SMALL.experts
    torch.testing.assert_close(table.weights.sum(-1), torch.ones(20, SMALL.layers))


def test_gates_follow_the_table_and_predictors_do_not(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(tmp_path, TINY))
    own = model.model.layers[1].mlp.gate.forward
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    asked_ahead = []

    def look(layer: int, inputs: tuple[Any, ...]) -> None:
        seen[layer].append(inputs[1])
        if layer == 0:
            ahead = model.model.layers[1].mlp.gate(inputs[0])
            asked_ahead.append(torch.equal(ahead[2], own(inputs[0])[2]))

    for layer in (0, 1):
        experts = model.model.layers[layer].mlp.experts
        experts.register_forward_pre_hook(lambda _, inputs, layer=layer: look(layer, inputs))
    table = make_routes("uniform", TINY, 5)
    ForcedRoutes(model, table)
    with torch.no_grad():
        cache = model(torch.tensor([[3, 4, 5]])).past_key_values
        model(torch.tensor([[6]]), past_key_values=cache)
    for layer in (0, 1):
        assert torch.equal(torch.cat(seen[layer]), table.indices[:4, layer])
    assert all(asked_ahead)


def test_belady_reads_only_what_is_new_when_everything_fits() -> None:
    table = make_routes("uniform", TINY, 8)
    sets = table.sets(prompt=4)
    assert len(sets) == 5
    first = [set(step) for step in sets[0]]
    new = sum(len(set().union(*(step[n] for step in sets)) - first[n]) for n in range(TINY.layers))
    assert belady_bytes(table, TINY, 4, slots=100) == new * TINY.expert_bytes / 4
    uses = sum(len(experts) for step in sets[1:] for experts in step)
    assert new * TINY.expert_bytes / 4 <= belady_bytes(table, TINY, 4, slots=1) <= uses * TINY.expert_bytes / 4


# the arms, each in this process


def spec_of(arm: str, checkpoint: Path, tmp_path: Path, routes: str = "sticky") -> Spec:
    folder = make_offload_folder(checkpoint, SMALL) if arm == "accelerate" else tmp_path
    return Spec(
        arm=arm, routes=routes, scale="small", checkpoint=str(checkpoint), offload_folder=str(folder),
        logits=str(tmp_path / f"{arm}.npy"), memory=0, slots=0 if arm == RESIDENT else 40, prompt=PROMPT,
        decode=DECODE, seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """Arm -> what it measured, its logits."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for arm in ARMS:
        spec = spec_of(arm, checkpoint, folder)
        found[arm] = run(spec), Path(spec.logits)
    return found


def test_all_arms_compute_the_same(outcomes: dict[str, tuple[dict[str, Any], Path]]) -> None:
    reference = outcomes[RESIDENT][1]
    assert np.load(reference).shape == (1 + DECODE, SMALL.vocab)
    ours = {digest(logits) for arm, (_, logits) in outcomes.items() if ARMS[arm].kind == "coterie"}
    assert len(ours) == 1
    for arm, (_, logits) in outcomes.items():
        assert error(logits, reference) <= TOLERANCE, arm


def test_arms_report_what_they_did(outcomes: dict[str, tuple[dict[str, Any], Path]]) -> None:
    for arm, (result, _) in outcomes.items():
        assert len(result["steps"]) == 1 + DECODE
        assert bool(result["steps"][-1]["store"]) == (ARMS[arm].kind == "coterie")

    def reads(arm: str) -> int:
        result = outcomes[arm][0]
        return int(result["steps"][-1]["store"]["bytes_read"] - result["start"]["store"]["bytes_read"])

    assert outcomes[JUDGED][0]["slots"] == 40
    assert reads(RESIDENT) == 0, "everything was there"
    assert reads(JUDGED) >= 40 * SMALL.expert_bytes
    assert reads("synchronous") == reads(JUDGED)


def test_one_wrong_expert_is_noticed(
    outcomes: dict[str, tuple[dict[str, Any], Path]], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> RouteTable:
        table = make_routes(*args)
        position, layer = PROMPT + 1, SMALL.layers // 2
        used = set(table.indices[position, layer].tolist())
        table.indices[position, layer, 0] = next(e for e in range(SMALL.experts) if e not in used)
        return table

    monkeypatch.setattr("offloading.worker.make_routes", wrong)
    spec = spec_of(PEER, checkpoint, tmp_path)
    run(spec)
    assert error(Path(spec.logits), outcomes[RESIDENT][1]) > TOLERANCE
