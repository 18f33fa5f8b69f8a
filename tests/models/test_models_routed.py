"""Preset routers put into transformers models: what they decide, and that nothing of the model is lost."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from coterie.errors import OptionError, UnsupportedError
from coterie.experts import FFN, Mixed
from coterie.models import RouterSpec, calibrate, config_of, find_sites, route, router_facts, session_of, set_curves
from coterie.routers import PRESETS
from coterie.testing.checkpoints import tiny_model
from coterie.testing.families import tiny_family

OPTIONS = {"group_limited": {"num_groups": 4, "keep_groups": 2}}
EXTRA = [
    RouterSpec("adamoe", {"null": "identity"}), RouterSpec("adamoe", {"min_true": 1}),
    RouterSpec("rmoe", {"cell": "lstm", "projector": "shared", "residual": 0.5}),
    RouterSpec("thor", {"draw": "sequence"}), RouterSpec("top_p", {"p": 0.8, "k_max": 3}),
]  # fmt: skip
SPECS = [*(RouterSpec(name, OPTIONS.get(name, {})) for name in PRESETS), *EXTRA]


def routed(spec, family="mixtral", **sizes):
    torch.manual_seed(1)
    model = tiny_model(family, **{"layers": 3, "k": 3, **sizes})
    route(model, spec)
    return model


def close(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# -- the same as before --------------------------------------------------------------------------------------------

TOP_K = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss", "granitemoe", "ernie4_5_moe", "jamba", "minimax", "qwen3_next")
GROUPS = ("deepseek_v3", "glm4_moe")


@pytest.mark.parametrize("family", [*TOP_K, *GROUPS])
@torch.no_grad()
def test_the_familys_own_routing_by_a_preset_gives_the_same_logits(family):
    model = tiny_family(family)
    ids = torch.randint(2, 60, (2, 9))
    expected = model(ids).logits
    attachment = route(model, RouterSpec("group_limited" if family in GROUPS else "top_k"))
    close(model(ids).logits, expected)
    assert all(
        isinstance(site.experts.inner, FFN) and site.experts.inner.method == "grouped" for site in find_sites(model)
    )
    attachment.undo()
    attachment.undo()
    assert torch.equal(model(ids).logits, expected)
    assert not hasattr(model.config, "coterie")
    assert "Routed" not in type(model).__name__ + type(model.config).__name__


@pytest.mark.parametrize("norm", [True, False])
def test_renormalisation_of_the_family_is_the_default(norm):
    def options(spec):
        model = tiny_model("qwen3_moe", norm_topk_prob=norm)
        route(model, spec)
        return config_of(model)["router"]["options"]

    assert options(RouterSpec("top_k"))["renormalise"] is norm
    assert options(RouterSpec("top_p"))["normalise"] == ("sum" if norm else "none")
    assert options(RouterSpec("top_p", {"normalise": "none"}))["normalise"] == "none"
    assert options(RouterSpec("top_k", {"renormalise": not norm}))["renormalise"] is not norm


def test_a_factor_of_the_family_is_kept():
    model = tiny_family("deepseek_v3")
    for site in find_sites(model):
        site.gate.e_score_correction_bias.zero_()  # top_p has no place for another
    route(model, RouterSpec("top_p", {"p": 0.5}))
    options = config_of(model)["router"]["options"]
    assert (options["normalise"], options["scale"], options["activation"]) == ("sum", 2.5, "sigmoid")
    route(model, RouterSpec("top_p", {"p": 0.5, "normalise": "none"}))


def test_gates_experts_and_corrections_are_taken_over():
    model = tiny_model("deepseek_v3")
    before = {site.name: (site.gate, site.experts) for site in find_sites(model)}
    route(model, RouterSpec("sigmoid_bias"))
    for site in find_sites(model):
        gate, experts = before[site.name]
        assert site.gate.inner.score.weight is gate.weight
        assert torch.equal(site.gate.inner.select.correction, gate.e_score_correction_bias)
        assert site.experts.inner.down_proj is experts.down_proj


def corrected_model(family="deepseek_v3", **more):
    """A model whose corrections decide: without them other experts are chosen."""
    model = tiny_model(family, experts=8, k=2, layers=2, n_group=1, topk_group=1, **more)
    for number, site in enumerate(find_sites(model)):
        with torch.no_grad():
            draw = torch.Generator().manual_seed(number)
            site.gate.e_score_correction_bias.copy_(5 + torch.rand(8, generator=draw))
    return model


@pytest.mark.parametrize(
    "spec",
    [
        RouterSpec("top_k"), RouterSpec("sigmoid_bias"), RouterSpec("rmoe", {"keep_linear": True, "state": 4}),
        RouterSpec("top_k", {"eval_capacity": 8.0}),
        RouterSpec("adamoe", {"num_nulls": 0}),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_a_correction_goes_on_choosing(spec, prompt):
    model = corrected_model()
    expected = model(prompt).logits
    without = copy.deepcopy(model)
    for site in find_sites(without):
        site.gate.e_score_correction_bias.zero_()
    assert (without(prompt).logits - expected).abs().max() > 0.01 * expected.abs().max()
    route(model, spec)
    close(model(prompt).logits, expected)
    route(model, RouterSpec("rmoe", {"keep_linear": True, "activation": "sigmoid", "scale": 2.5}))
    close(model(prompt).logits, expected)


def test_null_routes_begin_with_the_mean_correction():
    model = corrected_model()
    corrections = [site.gate.e_score_correction_bias.clone() for site in find_sites(model)]
    route(model, RouterSpec("adamoe", {"num_nulls": 3, "k": 4, "min_true": 1}))
    for site, before in zip(find_sites(model), corrections, strict=True):
        own = site.gate.inner.select.inner.correction
        assert torch.equal(own[:8], before)
        torch.testing.assert_close(own[8:], before.mean().expand(3))


@pytest.mark.parametrize(
    "spec",
    [
        RouterSpec("top_p", {"p": 0.5}), RouterSpec("adamoe", {"copied": True, "num_nulls": 8, "k": 4}),
        RouterSpec("adamoe", {"select": "top_p"}), RouterSpec("min_p"),
    ],
    ids=str,
)  # fmt: skip
def test_a_correction_without_a_place_is_refused(spec, prompt):
    model = corrected_model()
    modules = dict(model.named_modules())
    with pytest.raises(UnsupportedError, match=r"no place.*keep_gate=False"):
        route(model, spec)
    assert dict(model.named_modules()) == modules
    route(model, spec, keep_gate=False)
    assert torch.isfinite(model(prompt).logits).all()


def test_gates_may_be_drawn_anew():
    model = tiny_model("mixtral")
    (gate, *_) = [site.gate for site in find_sites(model)]
    route(model, RouterSpec("top_k"), keep_gate=False)
    assert not torch.equal(find_sites(model)[0].gate.inner.score.weight, gate.weight)


def test_null_rows_start_as_copies_of_the_gate():
    model = tiny_model("mixtral")
    route(model, RouterSpec("adamoe", {"num_nulls": 16, "k": 6, "copied": True}))
    score = find_sites(model)[0].gate.inner.score
    assert torch.equal(score.null_rows, score.inner.weight.repeat(2, 1))


@torch.no_grad()
def test_copied_nulls_are_an_exact_upgrade(prompt):
    """M = m * E copies and k (1 + m) choices: every token keeps its experts and their weights."""
    model = tiny_model("mixtral", layers=3, k=3)
    expected = model(prompt).logits
    route(model, RouterSpec("adamoe", {"num_nulls": 16, "k": 9, "copied": True}))
    close(model(prompt).logits, expected)


def test_identity_nulls_bring_their_expert(prompt):
    model = routed(RouterSpec("adamoe", {"null": "identity"}))
    for site in find_sites(model):
        assert isinstance(site.experts.inner, Mixed)
        assert (site.num_experts, site.num_true, site.gate.num_experts) == (9, 8, 9)
    model.train()(prompt, labels=prompt).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_another_router_in_place_of_ours(prompt):
    """A model that is routed already keeps its gates, and undoing goes one step back."""
    model = routed(RouterSpec("top_k"))
    expected = model(prompt).logits
    second = route(model, RouterSpec("top_p", {"p": 1.0, "normalise": "sum", "k_max": 3}))
    close(model(prompt).logits, expected)
    assert config_of(model)["router"]["name"] == "top_p"
    second.undo()
    assert config_of(model)["router"]["name"] == "top_k"
    assert torch.equal(model(prompt).logits, expected)


def test_a_copy_is_a_model_of_its_own(prompt):
    model = routed(RouterSpec("rmoe"))
    twin = copy.deepcopy(model)
    assert session_of(twin) is not session_of(model)
    with torch.no_grad():
        assert torch.equal(twin(prompt).logits, model(prompt).logits)
        twin.model.layers[0].mlp.gate.score.readout.weight.zero_()
        assert not torch.equal(twin(prompt).logits, model(prompt).logits)


def test_the_familys_own_balance_loss_is_left_out(prompt):
    model = tiny_model("mixtral", output_router_logits=True)
    attachment = route(model, RouterSpec("adamoe"))
    assert model(prompt, labels=prompt).aux_loss is None
    attachment.undo()
    assert model.config.output_router_logits is True


def test_facts_are_those_of_the_router_there_is():
    model = routed(RouterSpec("top_p", {"p": 0.25}))
    text = router_facts(model, find_sites(model)[0]).describe()
    assert re.match(r"top_p \(.*p=0.25.*\) over 8 experts", text)


# -- decoding ------------------------------------------------------------------------------------------------------


def decisions(model, call):
    """(site, sequence, position) -> chosen, of the real items of all forwards within ``call``."""
    found = {}

    def note(router, args, routing):
        ctx = args[1]
        for item in torch.nonzero(ctx.mask).flatten().tolist():
            key = (ctx.site, int(ctx.sequence[item]), int(ctx.position[item]))
            assert key not in found
            found[key] = routing.chosen[item][routing.chosen[item] < routing.num_routes].tolist()

    handles = [site.gate.inner.register_forward_hook(note) for site in find_sites(model)]
    result = call()
    for handle in handles:
        handle.remove()
    return found, result


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.name != "expert_choice"], ids=str)  # refused there
@torch.no_grad()
def test_generation_with_a_cache_routes_as_one_forward(spec, padded, prompt, left_padded):
    model = routed(spec)
    assert find_sites(model)[0].gate.inner.causal
    mask = left_padded if padded else torch.ones_like(prompt)
    options = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    stepwise, tokens = decisions(model, lambda: model.generate(prompt, **options))
    mask = torch.nn.functional.pad(mask, (0, 4), value=1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    whole, _ = decisions(model, lambda: model(tokens[:, :-1], attention_mask=mask, position_ids=position))
    assert stepwise == whole
    assert len(whole) == 3 * int(mask.sum())
    if spec.name != "hash_routing":  # which looks at nothing else
        assert len({tuple(chosen) for chosen in whole.values()}) > 3


@torch.no_grad()
def test_a_sequence_is_routed_alike_in_any_company(prompt, left_padded):
    model = routed(RouterSpec("thor"))
    together, _ = decisions(model, lambda: model(prompt, attention_mask=left_padded))
    session_of(model).sequences = torch.tensor([0])
    alone, _ = decisions(model, lambda: model(prompt[:1, 3:]))
    assert alone == {key: chosen for key, chosen in together.items() if key[1] == 0}


@torch.no_grad()
def test_beams_are_one_sequence(prompt):
    """Beams change places between steps; the keys of a draw do not, so a cache never mixes draws."""
    model = routed(RouterSpec("thor", {"draw": "sequence"}))
    heard = []
    find_sites(model)[0].gate.inner.register_forward_pre_hook(lambda router, args: heard.append(args[1]))
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "do_sample": False}
    model.generate(prompt, num_beams=3, **options)
    assert {tuple(ctx.sequence[:: len(ctx.sequence) // 6].tolist()) for ctx in heard} == {(0, 0, 0, 1, 1, 1)}
    assert session_of(model).sequences is None


# -- thresholds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_calibration_finds_the_threshold_for_a_budget(name):
    model, ids = routed(RouterSpec(name), family="olmoe"), torch.randint(2, 300, (8, 48))
    value = calibrate(model, ids, 2.0)
    session = session_of(model)
    session.counting = True
    with torch.no_grad():
        model(ids)
    assert session.usage.mean_experts == pytest.approx(2.0, abs=0.02)
    assert config_of(model)["router"]["options"]["p" if name == "top_p" else "ratio"] == value
    assert all(site.gate.inner.select.value == value for site in find_sites(model))


def test_calibration_that_cannot_be_leaves_the_threshold():
    model, ids = routed(RouterSpec("top_p", {"p": 0.7})), torch.randint(2, 300, (2, 16))
    with pytest.raises(OptionError, match=r"mean_experts=9\.0 is not allowed: this router can use"):
        calibrate(model, ids, 9.0)
    assert all(site.gate.inner.select.value == 0.7 for site in find_sites(model))
    with pytest.raises(OptionError, match="no text to calibrate on"):
        calibrate(model, [], 2.0)
    with pytest.raises(OptionError, match="Build a router with top_p or min_p"):
        calibrate(routed(RouterSpec("top_k")), ids, 2.0)
    with pytest.raises(UnsupportedError, match=r"has no router of Coterie.*route\(model, spec\)"):
        calibrate(tiny_model("mixtral"), ids, 2.0)
    assert calibrate(model, ids) == 0.7  # the curve alone


# -- what cannot be ------------------------------------------------------------------------------------------------

REFUSED = {
    "phimoe": "weighs its experts by sparsemixer",
    "gemma4": "scales every expert by a number of its own",
    "kolibri1": "adds its correction to the logits",
    "lfm2_moe": "is given hidden_states, expert_bias",
    "muse_spark": "is no linear map of its input",
    "llama4": "keeps or calls its experts in a way of its own",
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_are_refused_are_left_as_they_were(family):
    model = tiny_family(family)
    modules = dict(model.named_modules())
    with pytest.raises(UnsupportedError, match=REFUSED[family]):
        route(model, RouterSpec("top_k"))
    assert dict(model.named_modules()) == modules


def test_errors_say_what_to_type():
    model = tiny_model("mixtral")
    with pytest.raises(OptionError, match="Did you mean 'top_p'"):
        route(model, RouterSpec("topp"))
    with pytest.raises(OptionError, match=r"has no option 'renormalize'\. Did you mean 'renormalise'"):
        route(model, RouterSpec("top_k", {"renormalize": True}))
    with pytest.raises(UnsupportedError, match="no mixture-of-experts layer"):
        route(torch.nn.Linear(2, 2), RouterSpec("top_k"))
    with pytest.raises(UnsupportedError, match=r"route\(model, spec\)"):
        config_of(model)
    route(model, RouterSpec("top_k"))
    with pytest.raises(OptionError, match="pairs of numbers"):
        set_curves(model, {"k": [1, 2]})
