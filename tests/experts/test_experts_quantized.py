"""Experts and dense weights from a quantised checkpoint's own bytes, against transformers' loader."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import FFNShape, expert_forward
from coterie.experts.encoding import BlockScaled, Encoding, Mxfp4, Part, Plain
from coterie.experts.formats import REFUSED, SERVED, method_of, split_name
from coterie.experts.quantized import Storage
from coterie.testing.quantised import QUANTISED, save_tiny_quantised

DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
EXPERTS = 4
SIZES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"width": 64, "inner": 96},
    "deepseek_v3": {"width": 128, "inner": 256, "n_group": 2, "topk_group": 1},
    "qwen3_moe": {"width": 256, "inner": 128},
}
SHAPES = {
    "gpt_oss": FFNShape(64, 96, bias=True, transposed=True, interleaved=True),
    "deepseek_v3": FFNShape(128, 256, fused=False),
    "qwen3_moe": FFNShape(256, 128, fused=False),
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}


@dataclass
class Case:
    """One directory: its config, its tensors by weight and role, and the model transformers makes of it."""

    family: str
    dtype: torch.dtype
    path: Path
    quantization: dict[str, Any]
    weights: dict[str, dict[str, torch.Tensor]]
    theirs: Any

    def experts(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """Part name -> tensor of one expert."""
        site, parts = f"model.layers.{layer}.mlp.experts.", {}
        for name, roles in self.weights.items():
            if self.family == "gpt_oss" and name.startswith(site):
                parts |= {name.removeprefix(site) + role: tensor[expert] for role, tensor in roles.items()}
            elif name.startswith(f"{site}{expert}."):
                weight = name.removeprefix(f"{site}{expert}.").removesuffix(".weight")
                parts |= {weight + role: tensor for role, tensor in roles.items()}
        return parts


def found(parts: dict[str, torch.Tensor]) -> dict[str, Part]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {name: Part(names[tensor.dtype], tuple(tensor.shape)) for name, tensor in parts.items()}


@pytest.fixture(
    scope="module", params=[(*case, dtype) for case in QUANTISED for dtype in (DTYPES["BF16"], DTYPES["F32"])]
)
def case(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    family, method, dtype = request.param
    path = save_tiny_quantised(
        tmp_path_factory.mktemp(family), family, method, dtype=dtype, experts=EXPERTS, shards=2, tokenizer=False,
        **SIZES[family],
    )  # fmt: skip
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                base, role = split_name(name, method)
                weights.setdefault(base, {})[role] = tensors.get_tensor(name)
    theirs, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    quantization = json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    return Case(family, dtype, path, quantization, weights, theirs)


def test_experts_are_those_of_transformers(case):
    state = case.theirs.state_dict()
    layers = [layer for layer in range(2) if f"model.layers.{layer}.mlp.experts.down_proj" in state]
    assert layers
    for layer in layers:
        for expert in range(EXPERTS):
            parts = case.experts(layer, expert)
            storage = Storage.of(case.quantization, SHAPES[case.family], found(parts))
            weights = storage.weights(parts, case.dtype)
            assert storage.quantised
            assert storage.parts() == found(parts)
            assert {name: tuple(w.shape) for name, w in weights.items()} == storage.shape.weight_shapes()
            if "gate_proj" in weights:
                weights["gate_up_proj"] = torch.cat([weights.pop("gate_proj"), weights.pop("up_proj")])
            for name, weight in weights.items():
                stacked = state[f"model.layers.{layer}.mlp.experts.{name}"][expert]
                turned = SHAPES[case.family].transposed and stacked.ndim == 2
                assert weight.dtype == stacked.dtype
                assert torch.equal(weight, stacked.t() if turned else stacked), (layer, expert, name)


def test_scratch_holds_one_expert_after_another(case):
    layer = 1
    storage = Storage.of(case.quantization, SHAPES[case.family], found(case.experts(layer, 0)))
    scratch = storage.scratch(case.dtype)
    held = sum(tensor.nbytes for tensor in scratch.values())
    assert held <= storage.scratch_bytes(case.dtype) <= held + 4 * 2**20
    x = torch.randn(3, storage.shape.width, dtype=case.dtype)
    for expert in range(EXPERTS):
        parts = case.experts(layer, expert)
        fresh, reused = storage.weights(parts, case.dtype), storage.weights(parts, case.dtype, scratch)
        assert all(reused[name] is scratch[name] for name in scratch)
        assert torch.equal(expert_forward(x, fresh, storage.shape), expert_forward(x, reused, storage.shape))


def test_dense_weights_load_through_transformers_without_its_quantiser(case):
    """What a loader of the dense part does: decode to float32 when asked, and hide the quantisation from the config."""
    from transformers import AutoConfig

    class Decoded:
        def __init__(self, name: str, roles: dict[str, torch.Tensor]) -> None:
            self.encoding = Encoding.of(case.quantization, tuple(roles[""].shape), found(roles), name)
            self.roles = roles

        def __getitem__(self, index: Any) -> torch.Tensor:
            return self.encoding.decode(self.roles, torch.float32)[index]

    config = AutoConfig.from_pretrained(case.path)
    del config.quantization_config
    dense = {name: Decoded(name, roles) for name, roles in case.weights.items() if ".experts." not in name}
    model, info = type(case.theirs).from_pretrained(
        None, config=config, dtype=case.dtype, state_dict=dense, output_loading_info=True
    )
    assert all(".mlp.experts." in name for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    ours, theirs = model.state_dict(), case.theirs.state_dict()
    for name in theirs.keys() - info["missing_keys"]:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name
    some = any(encoded.encoding.quantised for encoded in dense.values())
    assert some == (case.family != "gpt_oss")


def test_without_looking_the_makers_layout_is_assumed(case):
    if case.dtype == torch.bfloat16:
        parts = found(case.experts(1, 0))
        assert Storage.of(case.quantization, SHAPES[case.family]).parts() == parts


def test_floats_are_passed_on_as_they_are():
    shape = FFNShape(8, 4, bias=True)
    parts = {name: torch.randn(size) for name, size in shape.weight_shapes().items()}
    storage = Storage.of(None, shape, found(parts))
    assert not storage.quantised
    assert storage.scratch_bytes(torch.float32) == 0
    assert storage.scratch(torch.float32) == {}
    weights = storage.weights(parts, torch.bfloat16)
    assert all(weights[name] is part for name, part in parts.items())
    assert Storage.of(None, shape, None).parts()["down_proj"] == Part("BF16", (8, 4))


def test_a_checkpoint_may_leave_some_weights_as_floats():
    """modules_to_not_convert: what lies on disk decides, not the config."""
    shape = FFNShape(256, 128, fused=False)
    parts = dict(Storage.of(FP8, shape).parts())
    del parts["up_proj_scale_inv"]
    parts["up_proj"] = Part("BF16", (128, 256))
    storage = Storage.of(FP8, shape, parts)
    kinds = {name: type(encoding) for name, encoding in storage.encodings.items()}
    assert kinds == {"gate_proj": BlockScaled, "up_proj": Plain, "down_proj": BlockScaled}
    assert set(storage.scratch(torch.bfloat16)) == {"gate_proj", "down_proj"}
    assert Storage.of(FP8, shape, parts | {"gate_proj_activation_scale": Part("F32", ())}) == storage


@pytest.mark.parametrize(
    ("scale", "part"),
    [
        (torch.rand(1, 2), Part("F32", (1, 2))),
        (torch.rand(64, 1), Part("F32", (64, 1))),
        (torch.rand(()), Part("F32", ())),
        (torch.rand(1).bfloat16(), Part("BF16", (1,))),
    ],
)
def test_scales_of_blocks_rows_and_tensors(scale, part):
    weight = torch.randn(64, 256).to(torch.float8_e4m3fn)
    encoding = Encoding.of(FP8, (64, 256), {"": Part("F8_E4M3", (64, 256)), "_scale_inv": part})
    by_hand = weight.float() * (scale.float().repeat_interleave(128, 1) if part.shape == (1, 2) else scale.float())
    assert torch.equal(encoding.decode({"": weight, "_scale_inv": scale}, torch.float32), by_hand)
    assert torch.equal(encoding.decode({"": weight, "_scale_inv": scale}, torch.bfloat16), by_hand.bfloat16())


def test_one_scale_for_all_is_what_a_config_without_blocks_means():
    encoding = Encoding.of({"quant_method": "fp8", "weight_block_size": None}, (6, 4))
    assert encoding.parts() == {"": Part("F8_E4M3", (6, 4)), "_scale_inv": Part("F32", ())}
    assert Encoding.of({"quant_method": "fp8"}, (300, 4)).parts()["_scale_inv"] == Part("F32", (3, 1))
    assert Encoding.of(FP8, (6,)) == Encoding.of({"quant_method": "mxfp8"}, (6,)) == Plain((6,))


def test_mxfp8_is_eight_bits_with_a_power_of_two_per_row_of_32():
    encoding = Encoding.of({"quant_method": "mxfp8"}, (4, 64))
    parts = encoding.parts()
    assert parts == {"": Part("F8_E4M3", (4, 64)), "_scale_inv": Part("U8", (4, 2))}
    found = Encoding.of({"quant_method": "mxfp8"}, (4, 64), parts)
    weight = torch.randn(4, 64).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[126, 128]] * 4, dtype=torch.uint8)
    by_hand = weight.float() * torch.tensor([0.5, 2.0]).repeat_interleave(32)
    for each in (encoding, found):
        assert torch.equal(each.decode({"": weight, "_scale_inv": exponents}, torch.float32), by_hand)


def test_four_bit_numbers_are_counted_as_they_are_stored():
    for dtype, columns in (("I8", 32), ("F4", 64)):
        parts = {"": Part(dtype, (8, columns)), "_scale_inv": Part("F8_E8M0", (8, 2))}
        assert Encoding.of(FP8, (8, 64), parts).parts() == parts


@pytest.mark.parametrize(
    ("quantization", "roles", "text"),
    [
        (FP8, {}, "lacks the weight"),
        (FP8, {"": Part("F8_E4M3", (256, 128))}, "neither floats nor fp8"),
        (None, {"": Part("I8", (256, 128))}, "neither floats nor quantised"),
        (FP8, {"_scale_inv": Part("F32", (2, 1))}, "no numbers of 8 or 4 bits"),
        (FP8, {"": Part("BF16", (256, 128)), "_scale_inv": Part("F32", (2, 1))}, "no numbers of 8 or 4 bits"),
        (FP8, {"": Part("F8_E4M3", (256, 128)), "_scale_inv": Part("I64", (2, 1))}, "no numbers of 8 or 4 bits"),
        (FP8, {"": Part("F8_E4M3", (256, 128)), "_scale_inv": Part("F32", (3, 1))}, "cannot have a grid"),
        (FP8, {"": Part("F8_E4M3", (128, 128)), "_scale_inv": Part("F32", (2, 1))}, "config.json makes"),
        (None, {"": Part("BF16", (128, 128))}, "config.json makes"),
        (MXFP4, {"_blocks": Part("U8", (256, 4, 16))}, "config.json makes _scales"),
        (MXFP4, {"_blocks": Part("U8", (256, 4, 8)), "_scales": Part("U8", (256, 4))}, "config.json makes _blocks"),
    ],
)
def test_what_contradicts_the_config_is_named(quantization, roles, text):
    with pytest.raises(CheckpointError, match=text) as error:
        Encoding.of(quantization, (256, 128), roles, "tiny: up_proj")
    assert str(error.value).startswith("tiny: up_proj")


def test_contradictions_of_an_expert_name_the_weight():
    parts = Storage.of(FP8, FFNShape(256, 128, fused=False)).parts()
    with pytest.raises(CheckpointError, match="tiny: gate_proj contradicts itself"):
        Storage.of(FP8, FFNShape(256, 256, fused=False), parts, "tiny")
    with pytest.raises(CheckpointError, match="tiny: down_proj lacks the weight"):
        Storage.of(FP8, FFNShape(256, 128, fused=False), {n: p for n, p in parts.items() if "down" not in n}, "tiny")


def test_mxfp4_lies_out_by_in_whatever_memory_holds():
    shape = FFNShape(64, 32, bias=True, transposed=True, interleaved=True)
    storage = Storage.of(MXFP4, shape)
    assert storage.shape == replace(shape, transposed=False)
    assert storage.encodings["down_proj"] == Mxfp4((64, 32))
    assert storage.parts() == {
        "gate_up_proj_blocks": Part("U8", (64, 2, 16)),
        "gate_up_proj_scales": Part("U8", (64, 2)),
        "gate_up_proj_bias": Part("BF16", (64,)),
        "down_proj_blocks": Part("U8", (64, 1, 16)),
        "down_proj_scales": Part("U8", (64, 1)),
        "down_proj_bias": Part("BF16", (64,)),
    }


def test_every_method_transformers_knows_is_served_or_refused_with_a_reason():
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
    from transformers.utils.quantization_config import QuantizationMethod

    known = {method.value for method in QuantizationMethod} | set(AUTO_QUANTIZATION_CONFIG_MAPPING)
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in known}
    assert known <= set(SERVED) | set(REFUSED)
    assert not set(SERVED) & set(REFUSED)


@pytest.mark.parametrize("method", [*REFUSED, "homemade", None])
def test_what_is_refused_says_why_and_what_instead(method):
    with pytest.raises(UnsupportedError, match=r"which is not served: .+ Choose the checkpoint in bfloat16") as error:
        Storage.of({"quant_method": method}, FFNShape(8, 4), None, "tiny")
    assert REFUSED.get(method, "does not know") in str(error.value)
    assert all(served in str(error.value) for served in SERVED)


def test_method_of():
    assert method_of(None) is None
    assert method_of({}) is None
    assert method_of(FP8) == "fp8"
    with pytest.raises(UnsupportedError, match="unnamed"):
        method_of([1, 2])


def test_split_name():
    site = "model.layers.0.mlp.experts"
    assert split_name(f"{site}.3.up_proj.weight_scale_inv", "fp8") == (f"{site}.3.up_proj.weight", "_scale_inv")
    assert split_name(f"{site}.gate_up_proj_scale_inv", "fp8") == (f"{site}.gate_up_proj", "_scale_inv")
    assert split_name("a.q_proj.activation_scale", "fp8") == ("a.q_proj.weight", "_activation_scale")
    assert split_name("a.w1.scale", "fp8") == ("a.w1.weight", "_scale_inv")
    assert split_name(f"{site}.down_proj_scales", "mxfp4") == (f"{site}.down_proj", "_scales")
    assert split_name(f"{site}.down_proj_bias", "mxfp4") == (f"{site}.down_proj_bias", "")
    assert split_name(f"{site}.down_proj_scales", None) == (f"{site}.down_proj_scales", "")
