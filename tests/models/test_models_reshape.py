"""Layers whose experts config.json cannot say: aliases, unequal numbers, kinds of experts; loaded, served, saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

import coterie
from coterie.errors import CheckpointError
from coterie.experts import EXPERT_KINDS, ExpertKind, FFNShape, Part, expert_forward
from coterie.models import RouterSpec, count_parameters, open_checkpoint, route, trace
from coterie.models.compat import quiet
from coterie.surgery import Method, NewLayer, rewrite
from coterie.testing.checkpoints import save_tiny

ABOUT = Method("merge", "lossy", "Experts were put together.")
IDS = torch.arange(14)[None]


@EXPERT_KINDS.register("doubled for a test")
@dataclass(frozen=True)
class Doubled(ExpertKind):
    """Weights stored as halves; expert e has room for e more numbers, so that no two are alike."""

    name = "doubled for a test"
    shape: FFNShape
    num_experts: int

    def parts(self, expert):
        sizes = {name: Part("F32", size) for name, size in self.shape.weight_shapes().items()}
        return sizes | ({"spare": Part("I64", (expert,))} if expert else {})

    def forward(self, x, parts):
        return expert_forward(x, self.floats(parts), self.shape)

    def floats(self, parts: Mapping[str, torch.Tensor]):
        return {name: 2 * parts[name] for name in self.shape.weight_shapes()}

    def as_record(self):
        return {}

    @classmethod
    def from_record(cls, record, shape, num_experts):
        return cls(shape, num_experts)


def folded(layer):
    weights = {name: weight[:3] for name, weight in layer.weights.items()}
    return NewLayer(weights, layer.router, tuple(route % 3 for route in range(8)))


def halves(layer):
    kind = Doubled(layer.shape, 8)
    parts = [{name: weight[e] / 2 for name, weight in layer.weights.items()} for e in range(8)]
    parts = [own | ({"spare": torch.arange(e)} if e else {}) for e, own in enumerate(parts)]
    return NewLayer({}, layer.router, kind=kind, parts=parts)


@pytest.fixture
def source(tmp_path):
    return open_checkpoint(save_tiny(tmp_path / "a", "mixtral"))


def loaded(path):
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def served(path):
    host = coterie.load(path, context=32, prefill=32, all_logits=True, prefetch="next-gate")
    logits = host(IDS).logits
    host.coterie.close()
    return logits


def test_aliases_are_counted_traced_and_served(tmp_path, source):
    path = rewrite(source, tmp_path / "b", folded, about=ABOUT).path
    checkpoint = open_checkpoint(path)
    site = checkpoint.sites[0]
    assert (site.num_experts, site.num_routes, site.experts_of) == (3, 8, (0, 1, 2, 0, 1, 2, 0, 1))
    model = loaded(path)
    assert count_parameters(model).num_total == sum(p.numel() for p in model.parameters())
    assert count_parameters(checkpoint.config).total == count_parameters(model).total
    with torch.no_grad(), trace(model) as recording:
        expected = model(IDS).logits
    plan = recording.plan()
    routing = plan[site.name].check()
    assert (routing.num_experts, routing.num_routes) == (3, 8)
    assert torch.equal(torch.tensor(site.experts_of)[routing.chosen].sort(-1).values.unique(), torch.arange(3))
    torch.testing.assert_close(served(path), expected, rtol=1e-5, atol=1e-5)


def test_an_alias_model_learns_and_can_be_routed_anew(tmp_path, source):
    model = loaded(rewrite(source, tmp_path / "b", folded, about=ABOUT).path)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "experts" in name)
    before = model(IDS).logits.detach()
    route(model, RouterSpec("top_k", {"k": 2}))
    torch.testing.assert_close(model(IDS).logits.detach(), before, rtol=1e-5, atol=1e-5)
    with quiet():
        model.save_pretrained(tmp_path / "c")
    record = json.loads((tmp_path / "c" / "coterie.json").read_text())
    assert record["router"]["name"] == "top_k"
    assert record["experts"]["model.layers.0.mlp.experts"]["experts"] == 3
    torch.testing.assert_close(loaded(tmp_path / "c")(IDS).logits.detach(), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(served(tmp_path / "c"), before, rtol=1e-5, atol=1e-5)


def test_a_kind_stores_computes_and_saves_itself(tmp_path, source):
    made = rewrite(source, tmp_path / "b", halves, about=ABOUT)
    assert (made.container, made.difference < 1e-4) == ("coterie", True)
    expected = loaded(source.path)(IDS).logits.detach()
    model = loaded(made.path)
    torch.testing.assert_close(model(IDS).logits.detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(served(made.path), expected, rtol=1e-5, atol=1e-5)
    model(IDS, labels=IDS).loss.backward()
    with quiet():
        model.save_pretrained(tmp_path / "c")
    assert {*open_checkpoint(tmp_path / "c").ranges} == {*open_checkpoint(made.path).ranges}
    torch.testing.assert_close(loaded(tmp_path / "c")(IDS).logits.detach(), expected, rtol=1e-5, atol=1e-5)
    back = rewrite(open_checkpoint(made.path), tmp_path / "d", lambda layer: layer.unchanged(), about=ABOUT)
    assert back.container == "native"
    torch.testing.assert_close(loaded(back.path)(IDS).logits.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["experts"].popitem(), "different models"),
        (
            lambda record: record["experts"]["model.layers.0.mlp.experts"].update(experts_of=[0] * 8),
            "contradicts itself",
        ),
        (lambda record: record["experts"]["model.layers.0.mlp.experts"].update(routes="8"), "routes"),
        (lambda record: record["experts"]["model.layers.0.mlp.experts"].update(kind={"name": "no"}), "no expert kind"),
        (lambda record: record.update(format=9), "pip install -U coterie"),
        (lambda record: record.pop("experts"), "router"),
    ],
)
def test_a_coterie_json_that_is_not_true(tmp_path, source, change, words):
    path = rewrite(source, tmp_path / "b", folded, about=ABOUT).path
    record = json.loads((path / "coterie.json").read_text())
    change(record)
    (path / "coterie.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


def test_an_expert_that_is_missing_is_named(tmp_path, source):
    from safetensors.torch import load_file, save_file

    path = rewrite(source, tmp_path / "b", halves, about=ABOUT).path
    tensors = load_file(path / "model.safetensors")
    del tensors["coterie.1.4.spare"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layer 1 lacks spare of expert 4"):
        open_checkpoint(path)
