"""Families whose experts are not behind transformers' interface: their calls, their files, what is refused."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Llama4Config, Llama4ForConditionalGeneration

from coterie.errors import CheckpointError, PromptError, UnsupportedError
from coterie.experts import FFN, Part
from coterie.experts.encoding import Turned
from coterie.jobs.running.load import load
from coterie.jobs.running.verify import verify
from coterie.models import attach, experts_from, footprint, load_host, open_checkpoint, resident_experts, trace
from coterie.models.bridge import ExpertsBridge, own_of, reader_of
from coterie.models.compat import OWN_LAYOUTS, own_layout, skeleton, text_inputs
from coterie.models.families import AT_ODDS, EXCLUDED
from coterie.models.find import find_sites
from coterie.testing.families import ROWS, own_layout_families, save_tiny_family, tiny_config, tiny_family

FAMILIES = own_layout_families()
BOTH_SIDES = ("nllb_moe", "switch_transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(family, **options)`` -> (directory, the model that was saved there)."""

    @functools.cache
    def make(family, **options):
        model = tiny_family(family, **options)
        return save_tiny_family(tmp_path_factory.mktemp(family), model), model

    return make


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids, **text_inputs(model, ids)).logits


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def sites_of(family):
    return find_sites(skeleton(tiny_config(family), torch.float32))


def test_every_entry_has_its_row():
    assert {family for family, row in ROWS.items() if row.layout == "own"} == set(FAMILIES)
    assert not set(FAMILIES) & EXCLUDED.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_an_experts_module_is_a_weight_of_its_shape(family):
    """The contract with transformers: names, sizes and counts are still what the entry says."""
    for site in sites_of(family):
        own = own_layout(site.experts)
        assert own is site.own is OWN_LAYOUTS[type(site.experts).__name__]
        named = {own.find(name)[0] for name, _ in site.experts.named_parameters()}
        expected = own.shape(site.experts).weight_shapes()
        assert named == expected.keys()
        elements = sum(parameter.numel() for parameter in site.experts.parameters())
        spare = own.spares(site.experts) * 2 * 16 * 32
        assert elements - spare == own.shape(site.experts).num_parameters(site.num_experts)
        assert (site.num_experts, site.top_k) == (8, 1 if family == "switch_transformers" else 2)


def test_a_module_without_an_entry_has_no_layout_of_its_own():
    linear = nn.Linear(2, 2)
    assert own_layout(linear) is None
    assert own_of(linear) is None
    assert reader_of(linear)(torch.ones(1, 2), 3, 4).indices == 3


class TestCalls:
    """What each way of calling says, against the family's own module."""

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family != "nllb_moe"])  # see AT_ODDS
    def test_the_bridge_computes_what_the_family_computes(self, family):
        model = tiny_family(family)
        site = find_sites(model)[0]
        heard = []
        site.experts.register_forward_hook(lambda module, args, output: heard.append((args, output)))
        logits_of(model, torch.arange(2, 26)[None])
        (args, expected), *_ = heard
        bridge = ExpertsBridge(stacked(site), site.experts)
        with torch.no_grad():
            found = bridge(*args)
        assert found.shape == expected.shape
        assert error(found, expected) < 1e-5
        assert own_of(bridge) is site.own
        assert bridge.num_experts == 8

    def test_an_identity_passes_its_row_on(self):
        read = reader_of(find_sites(tiny_family("longcat_flash"))[0].experts)
        rows = torch.randn(2, 32)
        sent = read(rows, torch.tensor([[1, 9], [8, 10]]), torch.tensor([[0.5, 0.25], [1.0, 2.0]]))
        assert sent.indices.tolist() == [[1, 8], [8, 8]]
        assert sent.passed.tolist() == [[0.25], [3.0]]
        assert sent.weights.tolist() == [[0.5, 0.0], [0.0, 0.0]]

    def test_rows_of_zeros_go_nowhere(self):
        read = reader_of(find_sites(tiny_family("llama4"))[0].experts)
        rows = torch.zeros(8, 3, 32)
        rows[5, 0], rows[2, 1], rows[7, 1], rows[1, 2] = 1.0, 2.0, -1.0, torch.nan
        sent = read(rows.view(24, 32))
        indices, weights = sent.table()
        assert indices.tolist() == [[5, 8], [2, 7], [1, 8]]
        assert weights.tolist() == [[1, 1]] * 3

    def test_a_full_expert_takes_no_more(self):
        model = tiny_family("switch_transformers", expert_capacity=1)
        site, heard = find_sites(model)[0], []
        site.experts.register_forward_pre_hook(lambda module, args: heard.append(args))
        logits_of(model, torch.arange(2, 26)[None])
        sent = reader_of(site.experts)(*heard[0])
        real = sent.indices[sent.indices < 8].tolist()
        assert (sent.indices == 8).any()
        assert len(real) == len(set(real))


def stacked(site):
    """The experts of a live model as an `FFN`, by the entry's own names."""
    shape = site.own.shape(site.experts)
    experts = FFN(site.num_experts, shape, "reference")
    with torch.no_grad():
        for name, parameter in site.experts.named_parameters():
            weight, expert = site.own.find(name)
            if expert is not None:
                getattr(experts, weight)[expert] = parameter
            else:
                part = parameter.view(-1, *parameter.shape[-2:]) if not site.own.flat else parameter.view(8, -1, 32)
                part = part[:8].mT if weight in site.own.turned else part[:8]
                getattr(experts, weight).copy_(part)
    return experts


class TestOnDisk:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_turned_matrix(self, dtype):
        disk = torch.randn(3, 5)
        turned = Turned((5, 3), "F32")
        assert turned.parts() == {"": Part("F32", (3, 5))}
        out = torch.empty(5, 3, dtype=dtype)
        assert torch.equal(turned.decode({"": disk}, dtype), disk.t().to(dtype))
        assert turned.decode({"": disk}, dtype).is_contiguous()
        assert turned.decode({"": disk}, dtype, out) is out
        assert torch.equal(out, disk.t().to(dtype))

    def test_identity_experts_may_be_written_or_not(self, saved, prompt, tmp_path):
        path, original = saved("longcat_flash")
        tensors = load_file(path / "model.safetensors")
        spare = [name for name in tensors if re.search(r"experts\.(8|9|10)\.", name)]
        assert spare
        (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
        save_file({n: t for n, t in tensors.items() if n not in spare}, tmp_path / "model.safetensors")
        with torch.no_grad():
            host = load_host(open_checkpoint(tmp_path), resident_experts)
        assert error(logits_of(host, prompt), logits_of(original, prompt)) < 1e-4

    @pytest.mark.parametrize("family", ["longcat_flash", "step3p7", "llama4"])
    def test_the_layout_of_memory(self, family, prompt, tmp_path):
        original = tiny_family(family)
        save_tiny_family(tmp_path, original, stacked=True)
        host = load_host(open_checkpoint(tmp_path), resident_experts)
        assert error(logits_of(host, prompt), logits_of(original, prompt)) < 1e-4

    def test_llama_4_with_pictures_is_served_by_its_text(self, prompt, tmp_path):
        text = tiny_config("llama4").to_dict()
        vision = {
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
            "image_size": 8, "patch_size": 4, "vision_output_dim": 32, "projector_input_dim": 32,
            "projector_output_dim": 32,
        }  # fmt: skip
        original = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
        save_tiny_family(tmp_path, original)
        host = load_host(open_checkpoint(tmp_path), resident_experts)
        assert error(logits_of(host, prompt), logits_of(original, prompt)) < 1e-4

    @pytest.mark.parametrize(
        ("family", "name"),
        [
            ("switch_transformers", "decoder.block.1.layer.2.mlp.experts.expert_3.wo.weight"),
            ("dbrx", "transformer.blocks.0.ffn.experts.mlp.v1"),
            ("nllb_moe", "model.encoder.layers.1.ffn.experts.expert_7.fc1.bias"),
            ("switch_transformers", "encoder.block.0.layer.1.mlp.router.classifier.weight"),
        ],
    )
    def test_what_is_missing_is_named(self, saved, tmp_path, family, name):
        path, _ = saved(family)
        tensors = load_file(path / "model.safetensors")
        del tensors[name]
        (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="lacks"):
            open_checkpoint(tmp_path)

    def test_flat_experts_of_another_count(self, saved, tmp_path):
        path, _ = saved("dbrx")
        tensors = load_file(path / "model.safetensors")
        name = "transformer.blocks.0.ffn.experts.mlp.w1"
        tensors[name] = tensors[name][:-1].clone()
        (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="contradicts itself"):
            open_checkpoint(tmp_path)


class TestEncoderAndDecoder:
    @pytest.mark.parametrize("family", BOTH_SIDES)
    def test_verify_holds(self, saved, family):
        path, _ = saved(family)
        report = verify(path, slots=2, batch=2)
        assert report.holds
        assert report.misses > 0
        assert (report.transformers is None) == (family == "nllb_moe")
        assert report.transformers_skipped in ("", "not asked for", AT_ODDS["nllb-moe"])

    @pytest.mark.parametrize("family", BOTH_SIDES)
    def test_it_is_not_traced(self, saved, family):
        _, model = saved(family)
        with pytest.raises(UnsupportedError, match="encoder"), trace(model):
            pass

    def test_the_cache_of_both_sides_counts(self, saved):
        checkpoint = open_checkpoint(saved("switch_transformers")[0])
        # keys and values of 2 layers, 4 heads of 8, float32: of what was written, and of what was read
        assert footprint(checkpoint, batch=3, length=20).cache == 3 * 20 * 2 * 2 * 4 * 8 * 4 * 2
        assert footprint(checkpoint, 3, 20, chunk=4) == footprint(checkpoint, 3, 20)

    def test_an_answer_does_not_outgrow_the_budget(self, saved, prompt):
        host = load(saved("switch_transformers")[0], context=12, batch=2)
        with pytest.raises(PromptError, match="more than the budget made room for"):
            host.generate(prompt, min_new_tokens=30, max_new_tokens=30, do_sample=False)
        host.coterie.close()


class TestRefusals:
    @pytest.mark.parametrize("family", ["dbrx", "longcat_flash", "nllb_moe", "switch_transformers"])
    def test_parameters_of_another_form_are_not_shared(self, saved, family):
        _, model = saved(family)
        with pytest.raises(UnsupportedError, match="layout of its own"):
            attach(model, experts=lambda site, old: experts_from(old))

    @pytest.mark.parametrize("family", ["dbrx", "llama4", "nllb_moe", "switch_transformers"])
    def test_routers_that_answer_in_their_own_way_are_not_replaced(self, saved, family):
        _, model = saved(family)
        with pytest.raises(UnsupportedError, match="way of their own"):
            attach(model, router=lambda site, old: None)

    def test_transformers_is_still_at_odds_with_nllb_moe(self, prompt):
        """Experts beyond the second change nothing; when they do, take the family out of AT_ODDS."""
        model = tiny_family("nllb_moe")
        before = logits_of(model, prompt)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if re.search(r"experts\.expert_[2-7]\.", name):
                    parameter.zero_()
        assert torch.equal(logits_of(model, prompt), before)

    def test_jetmoe_keeps_half_of_its_experts_in_attention(self):
        """Why it is excluded."""
        model = skeleton(tiny_config("jetmoe"), torch.float32)
        assert find_sites(model) == []
        kinds = {name.split(".")[3] for name, _ in model.named_parameters() if "input_linear" in name}
        assert kinds == {"self_attention", "mlp"}


@pytest.mark.parametrize("family", ["dbrx", "llama4", "longcat_flash", "step3p7"])
def test_what_a_router_says_ahead_is_what_it_does(saved, prompt, family):
    _, model = saved(family)
    inputs = {site.name: [] for site in find_sites(model)}
    for site in find_sites(model):
        assert site.gate_takes_rows
        site.gate.register_forward_pre_hook(lambda gate, args, name=site.name: inputs[name].append(args[0]))
    with trace(model) as recording:
        logits_of(model, prompt)
    plan = recording.plan()
    for site in find_sites(model):
        x = inputs[site.name][0].reshape(-1, 32)
        said = site.choices(x).sort(-1).values
        said = said.where(said < 8, 8)
        indices = plan.sites[site.name].padded(k=2)[1]
        assert torch.equal(said.sort(-1).values, indices.sort(-1).values)


def test_reading_ahead_changes_no_bit(saved, prompt):
    path, _ = saved("dbrx")
    expected = logits_of(load_host(open_checkpoint(path), resident_experts), prompt)
    host = load(path, context=32, batch=2, all_logits=True, slots=3, prefetch="next-gate")
    assert torch.equal(logits_of(host, prompt), expected)
    host.coterie.close()
