"""A trace is what the routers said, item by item."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import RoutingError, UnsupportedError
from coterie.models import find_sites, load_host, open_checkpoint, resident_experts, routing_hash, trace
from coterie.routing import RoutePlan
from coterie.testing.checkpoints import FAMILIES, tiny_model


def listen(model, calls):
    """Record the routers' outputs by hooks of our own."""
    for site in find_sites(model):
        site.gate.register_forward_hook(
            lambda gate, args, out, name=site.name: calls.setdefault(name, []).append([t.detach() for t in out])
        )


@pytest.mark.parametrize("hosted", [False, True], ids=["stock", "hosted"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_plan_is_what_the_routers_returned(family, hosted, saved, prompt):
    path = saved(family)
    model = load_host(open_checkpoint(path), resident_experts) if hosted else tiny_model(family, layers=3, k=3)
    calls = {}
    listen(model, calls)
    with trace(model) as recording:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    plan = recording.plan()
    assert list(plan.sites) == [site.name for site in find_sites(model)]
    assert recording.num_forwards == 4
    for name, routing in plan.sites.items():
        routing.check()
        logits, weights, indices = (torch.cat(tensors) for tensors in zip(*calls[name], strict=True))
        assert torch.equal(routing.chosen, indices)
        assert torch.equal(routing.logits, logits)
        dense = torch.zeros(len(indices), 8).scatter_(1, indices, weights.float())
        assert torch.equal(routing.dense(), dense)
        assert routing.num_items == plan.num_items == len(plan.ids) == 2 * (9 + 3)


@torch.no_grad()
def test_items_of_a_padded_generation(prompt, left_padded):
    model = tiny_model("mixtral")
    with trace(model) as recording:
        tokens = model.generate(
            prompt, attention_mask=left_padded, max_new_tokens=3, min_new_tokens=3, do_sample=False
        )  # fmt: skip
    plan = recording.plan()
    assert plan.sequence.tolist() == [0] * 9 + [1] * 9 + [0, 1] * 2
    assert torch.equal(plan.mask, torch.cat([left_padded.reshape(-1).bool(), torch.ones(4, dtype=torch.bool)]))
    assert plan.position[plan.mask].tolist() == [*range(6), *range(9), 6, 9, 7, 10]
    assert torch.equal(plan.ids, torch.cat([prompt.reshape(-1), tokens[:, 9], tokens[:, 10]]))


@torch.no_grad()
def test_forwards_without_a_cache_start_new_sequences(prompt):
    model = tiny_model("olmoe")
    with trace(model) as recording:
        first = model(prompt)
        model(prompt[:1, :4], past_key_values=None)
        model.model(inputs_embeds=model.get_input_embeddings()(prompt[:, :2]))
    plan = recording.plan()
    assert first.past_key_values is not None
    assert plan.sequence.tolist() == [0] * 9 + [1] * 9 + [2] * 4 + [3] * 2 + [4] * 2
    assert plan.position.tolist() == [*range(9), *range(9), *range(4), 0, 1, 0, 1]
    assert plan.ids is None  # embeddings have none
    assert plan.mask.all()


@torch.no_grad()
def test_a_continuation_keeps_its_sequences(prompt):
    model = tiny_model("olmoe")
    past = model(prompt[:, :5]).past_key_values
    with trace(model) as recording:
        model(prompt[:, 5:], past_key_values=past)
        model(prompt)
    plan = recording.plan()
    assert plan.sequence.tolist() == [0] * 4 + [1] * 4 + [2] * 9 + [3] * 9
    assert plan.position.tolist() == 2 * [*range(5, 9)] + 2 * [*range(9)]


@torch.no_grad()
def test_decode_routes_like_prefill(prompt):
    """The same tokens read at once or one by one go to the same experts."""
    model = tiny_model("qwen3_moe")
    with trace(model) as whole:
        model(prompt)
    with trace(model) as steps:
        past = model(prompt[:, :1]).past_key_values
        for position in range(1, 9):
            past = model(prompt[:, position : position + 1], past_key_values=past).past_key_values
    a, b = whole.plan(), steps.plan()
    order = (b.sequence * 100 + b.position).argsort()
    assert torch.equal(b.ids[order], a.ids)
    for name in a.sites:
        torch.testing.assert_close(b[name].dense()[order], a[name].dense())


def test_recomputation_is_not_heard(prompt):
    model = tiny_model("mixtral").train()
    model.activation_checkpointing_enable()
    with trace(model) as recording:
        model(prompt, labels=prompt, use_cache=False).loss.backward()
    assert recording.num_forwards == 1
    assert recording.plan().num_items == 18


def test_a_forward_that_fails_is_not_recorded(prompt):
    model = tiny_model("mixtral")
    with trace(model) as recording:
        with pytest.raises(IndexError):
            model(prompt + 10_000)
        model(prompt)
    assert recording.num_forwards == 1


def test_nothing_stays_behind(prompt):
    model = tiny_model("mixtral")
    with pytest.raises(IndexError), trace(model) as recording:
        model(prompt + 10_000)
    assert not [h for m in model.modules() for h in [*m._forward_hooks, *m._forward_pre_hooks]]
    assert len(model(prompt, output_router_logits=True).router_logits) == 2
    assert recording.num_forwards == 0


def test_the_plan_keeps_no_graph_and_survives_a_file(prompt, tmp_path):
    model = tiny_model("deepseek_v3")
    with trace(model) as recording:
        model(prompt)
    plan = recording.plan()
    plan.save(tmp_path / "plan.safetensors")
    read = RoutePlan.load(tmp_path / "plan.safetensors")
    assert read.model == plan.model == routing_hash(model)
    for name, routing in plan.sites.items():
        assert not routing.weight.requires_grad
        assert torch.equal(read[name].dense(), routing.dense())


def test_the_hash_is_of_who_routes(saved):
    path = saved("olmoe")
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(path)
    host = load_host(open_checkpoint(path), resident_experts)
    assert routing_hash(host) == routing_hash(stock)
    with torch.no_grad():
        stock.model.layers[0].mlp.gate.weight[0, 0] += 1
    assert routing_hash(host) != routing_hash(stock)


def test_nothing_recorded_and_nothing_to_record():
    with trace(tiny_model("olmoe")) as recording:
        pass
    with pytest.raises(RoutingError, match="inside the trace"):
        recording.plan()
    with pytest.raises(UnsupportedError, match="Linear has no mixture-of-experts layer"), trace(torch.nn.Linear(2, 2)):
        pass
