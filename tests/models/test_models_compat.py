"""One test per touch point with transformers. A failure here means: transformers changed, mend that file of compat."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from coterie.errors import UnsupportedError
from coterie.experts import FFNShape
from coterie.models import open_checkpoint
from coterie.models.compat import (
    DiskNames,
    Place,
    accept_sentinels,
    class_without,
    ffn_shape,
    install_recorders,
    is_experts,
    load_dense,
    quiet,
    recorders_installed,
    skeleton,
    tied_names,
)
from coterie.testing.checkpoints import FAMILIES, save_tiny, tiny_config, tiny_model
from coterie.testing.families import tiny_config as tiny_family_config
from coterie.testing.families import tiny_family

CHANGED = "transformers changed: mend src/coterie/models/compat/"


def parts_of(family, **sizes):
    model = tiny_model(family, layers=2, **sizes)
    block = model.model.layers[1].mlp
    return model, block.gate, block.experts


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_announce_their_layout(family):
    _, gate, experts = parts_of(family)
    assert is_experts(experts), f"{CHANGED}interface.py: the decorator no longer sets its flags"
    assert not is_experts(gate)
    assert ffn_shape(experts) == FFNShape(width=32, inner=16), f"{CHANGED}interface.py: another layout in memory"
    assert set(dict(experts.named_parameters())) == {"gate_up_proj", "down_proj"}, f"{CHANGED}interface.py"


def experts_of(family):
    return next(module for module in tiny_family(family).modules() if is_experts(module))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt_oss", {"bias": True, "transposed": True, "interleaved": True, "clamp": 7.0, "alpha": 1.702}),
        ("openai_privacy_filter", {"bias": True, "transposed": True, "clamp": 7.0, "alpha": 1.702}),
        ("deepseek_v4", {"clamp": 10.0}),
        ("gemma4", {"activation": "gelu_pytorch_tanh"}),
        ("nemotron_h", {"gated": False, "activation": "relu2"}),
        ("aria", {"transposed": True}),
    ],
)
def test_what_families_compute_is_recognised(family, options):
    found = ffn_shape(experts_of(family))
    assert found == FFNShape(width=32, inner=16, **options), f"{CHANGED}gating.py or interface.py: {family}"


@pytest.mark.parametrize("family", ["beam", "inkling2"])
def test_a_gate_of_a_familys_own_is_called_where_we_have_none_like_it(family):
    """In float32 Beam's is ours; it rounds elsewhere in bfloat16."""
    experts = experts_of(family)
    gate, up = torch.randn(3, 16, dtype=torch.bfloat16), torch.randn(3, 16, dtype=torch.bfloat16)
    shape = ffn_shape(experts)
    assert shape.gate_fn is not None
    assert torch.equal(shape.hidden(up, gate), experts._apply_gate(torch.cat([gate, up], -1)))
    with torch.device("meta"):
        assert ffn_shape(experts_of(family)).gate_fn is not None, "on the meta device as well"


def test_a_norm_behind_each_expert_is_read():
    shape = ffn_shape(experts_of("muse_spark"))
    assert (shape.post_norm, shape.post_norm_eps) == (True, 1e-8)


def test_an_activation_with_weights_of_its_own_is_refused():
    _, _, experts = parts_of("olmoe")
    experts.act_fn = nn.PReLU(16, device="meta")
    with pytest.raises(UnsupportedError, match="OlmoeExperts has an activation of its own"):
        ffn_shape(experts)


def test_the_registry_of_implementations():
    assert {"grouped_mm", "batched_mm"} <= set(ALL_EXPERTS_FUNCTIONS), f"{CHANGED}interface.py: the registry"


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_index_e_means_no_expert(implementation):
    _, _, experts = parts_of("mixtral")
    experts.config._experts_implementation = implementation
    assert accept_sentinels(experts) is False
    x, indices, weights = torch.randn(4, 32), torch.tensor([[0, 8], [8, 8], [3, 8], [7, 8]]), torch.ones(4, 2)
    weights[indices == 8] = 0
    alone = experts(x, indices[:, :1], weights[:, :1])
    for _ in range(3):  # unwritten memory may happen to be zero once
        found = experts(x, indices, weights)
        assert torch.allclose(found, alone), f"{CHANGED}interface.py: sentinels"
        assert not found[1].any()
    assert accept_sentinels(experts, False) is True


@pytest.mark.parametrize("family", FAMILIES)
def test_recorder_hooks_match_by_isinstance(family):
    model, gate, _ = parts_of(family)
    body = model.base_model
    assert not recorders_installed(body)
    model(torch.ones(1, 2, dtype=torch.int64), output_router_logits=True)
    assert recorders_installed(body), f"{CHANGED}interface.py: the mark of installed hooks"
    twin = type("Twin", (type(gate),), {})(model.config)
    stranger = nn.Linear(2, 2)
    for module in (twin, stranger):
        install_recorders(body, module)
    assert len(twin._forward_hooks) == len(gate._forward_hooks) == 1, f"{CHANGED}interface.py: recorder hooks"
    assert not stranger._forward_hooks


@pytest.mark.parametrize(
    ("family", "disk", "place"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.7.w1.weight", ("gate_up_proj", 7, 0, 2)),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.7.w3.weight", ("gate_up_proj", 7, 1, 2)),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.0.w2.weight", ("down_proj", 0, 0, 1)),
        ("olmoe", "model.layers.1.mlp.experts.5.gate_proj.weight", ("gate_up_proj", 5, 0, 2)),
        ("qwen3_moe", "model.layers.1.mlp.experts.123.up_proj.weight", ("gate_up_proj", 123, 1, 2)),
        ("deepseek_v3", "model.layers.1.mlp.experts.5.down_proj.weight", ("down_proj", 5, 0, 1)),
        ("deepseek_v3", "model.layers.1.mlp.experts.gate_up_proj", ("gate_up_proj", None, 0, 1)),
    ],
)
def test_expert_names_on_disk(family, disk, place):
    names = DiskNames(skeleton(tiny_config(family), torch.float32))
    name, *rest = place
    full = f"model.layers.1.mlp.experts.{name}"
    expected = Place(full, *rest, fills=(full,))
    assert names.place(disk) == expected, f"{CHANGED}names.py: {family}'s conversion table"


def test_other_names_on_disk():
    names = DiskNames(skeleton(tiny_config("mixtral"), torch.float32))
    for disk, memory in {
        "model.layers.0.block_sparse_moe.gate.weight": "model.layers.0.mlp.gate.weight",
        "model.norm.weight": "model.norm.weight", "norm.weight": "model.norm.weight",
        "something.else": "something.else",
    }.items():  # fmt: skip
        assert names.place(disk) == Place(memory, fills=(memory,)), f"{CHANGED}names.py"


@pytest.mark.parametrize(
    ("family", "disk", "name", "order"),
    [
        ("aria", "language_model.model.layers.0.mlp.experts.fc1.weight", "gate_up_proj", "same"),
        ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", "gate_up_proj", "transposed"),
        ("inkling2", "model.language_model.layers.0.mlp.experts.w13_weight", "gate_up_proj", "interleaved"),
    ],
)
def test_other_orders_on_disk(family, disk, name, order):
    place = DiskNames(skeleton(tiny_family_config(family), torch.float32)).place(disk)
    assert (place.name, place.order) == (f"model.language_model.layers.0.mlp.experts.{name}", order), CHANGED


def test_experts_of_two_modalities_are_one_list_on_disk():
    names = DiskNames(skeleton(tiny_family_config("ernie4_5_vl_moe"), torch.float32))
    places = [names.place(f"model.layers.1.mlp.experts.{number}.up_proj.weight") for number in (7, 8)]
    owners = [place.name.split(".mlp.")[1].split(".")[0] for place in places]
    assert owners == ["text_moe", "vision_moe"], f"{CHANGED}names.py: modalities"
    assert [(place.expert, place.part, place.parts) for place in places] == [(7, 1, 2), (0, 1, 2)]


def test_a_conversion_beyond_stacking_is_refused(tmp_path, monkeypatch):
    from transformers.core_model_loading import Transpose

    path = save_tiny(tmp_path / "model", "olmoe", tokenizer=False)
    usual = DiskNames.__init__

    def init(self, model):
        usual(self, model)
        for converter in self._converters:
            converter.operations.append(Transpose(1, 2))

    monkeypatch.setattr(DiskNames, "__init__", init)
    with pytest.raises(UnsupportedError, match="does not read yet"):
        open_checkpoint(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_names_and_shapes_and_no_memory(family):
    config = tiny_config(family)
    model, real = skeleton(config, torch.bfloat16), tiny_model(family)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}, f"{CHANGED}skeleton.py"
    shapes = {name: tuple(t.shape) for name, t in real.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == shapes
    assert config.dtype != torch.bfloat16, "the caller's config must not change"


def test_tied_names():
    tied = skeleton(tiny_config("olmoe", tie_word_embeddings=True), torch.float32)
    assert tied_names(tied) == {"lm_head.weight": "model.embed_tokens.weight"}, f"{CHANGED}skeleton.py"
    assert tied_names(skeleton(tiny_config("olmoe"), torch.float32)) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_without_still_counts_as_transformers_own(family):
    config = tiny_config(family)
    base = type(skeleton(config, torch.float32))
    kind = class_without(base, ["model.layers.1.mlp.experts"])
    assert not kind.is_custom_code(), f"{CHANGED}skeleton.py: the class would lose the conversion of names"
    with torch.device("meta"):
        model = kind(config)
    assert kind._can_set_experts_implementation(), f"{CHANGED}skeleton.py: the class would fall back to eager experts"
    assert model.config._experts_implementation == "grouped_mm", f"{CHANGED}skeleton.py: silent eager experts"
    assert not list(model.model.layers[1].mlp.experts.parameters())
    assert "model.layers.1.mlp.experts" not in " ".join(model.state_dict())
    stock = AutoModelForCausalLM.from_config(config)
    assert "save_pretrained" not in vars(type(stock)), "the stock class must not change"


def test_the_loader_slices_a_state_dict_lazily(saved):
    """Only what is named is read, once, and dtypes the loader keeps wide stay wide."""
    from coterie.models import checkpoint as opened

    checkpoint = open_checkpoint(saved("deepseek_v3", dtype=torch.bfloat16))
    names = [site.name for site in checkpoint.sites]
    kind = class_without(type(skeleton(checkpoint.config, torch.bfloat16)), names)
    read = []

    def listening(part, **options):
        read.append(part)
        return original(part, **options)

    with pytest.MonkeyPatch.context() as patch:
        original = opened.read_tensor
        patch.setattr(opened, "read_tensor", listening)
        tensors = checkpoint.dense_readers()
        assert not read
        model = load_dense(kind, checkpoint.path, checkpoint.config, tensors, torch.bfloat16)
    key = lambda part: (part.path, part.start)  # noqa: E731
    assert sorted(read, key=key) == sorted(checkpoint.dense.values(), key=key), f"{CHANGED}loading.py"
    gate = model.model.layers[1].mlp.gate
    assert (gate.weight.dtype, gate.e_score_correction_bias.dtype) == (torch.bfloat16, torch.float32)
    assert model.config.name_or_path == str(checkpoint.path)


def test_quiet_puts_the_switch_back():
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled(), f"{CHANGED}loading.py: the switch of progress bars"
    assert logging.is_progress_bar_enabled() == before
