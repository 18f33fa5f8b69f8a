"""What networks cost at their true sizes, and that what is counted is what is computed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coterie.errors import OptionError
from coterie.jobs.sheet import count
from coterie.models.vision import NETWORKS, VisionSpec, build_vision, smaller_routers, vision_cost

ALL = sorted(NETWORKS)

# 32x32 images, 10 classes, two experts of half the channels: billions of multiply-accumulates of the dense network, of
# the dense one of half the width, of a pathway, and with its router; the share that is saved; millions of parameters of
# the dense network and of network and experts without router, by shared norms
TABLE = {
    "resnet18": (0.555, 0.139, 0.152, 0.192, 0.65, 11.17, 5.57),
    "wrn28_10": (5.243, 1.311, 1.311, 1.352, 0.74, 36.48, 18.24),
    "vgg16": (0.314, 0.079, 0.079, 0.120, 0.62, 15.31, 7.69),
    "densenet40": (0.072, 0.018, 0.018, 0.059, 0.19, 0.176, 0.085),
}


def half(architecture, **fields):
    return VisionSpec(architecture, experts=2, ratio=0.5, **fields)


@pytest.mark.parametrize("architecture", TABLE)
def test_the_published_sizes(architecture):
    dense, small, pathway, both, saving, parameters, of_experts = TABLE[architecture]
    cost = vision_cost(half(architecture, norm="shared"))
    assert [round(macs / 1e9, 3) for macs in (cost.dense.macs, cost.small.macs, cost.pathway)] == [
        dense,
        small,
        pathway,
    ]
    assert cost.macs / 1e9 == pytest.approx(both, abs=1e-3)  # the table adds what it has rounded
    assert round(cost.saving, 2) == saving
    digits = 3 if parameters < 1 else 2
    assert round(cost.dense.parameters / 1e6, digits) == parameters
    assert round((cost.parameters - cost.router_parameters) / 1e6, digits) == of_experts


def test_the_router_that_is_published():
    cost = vision_cost(half("resnet18"))
    assert cost.router_parameters == 269_202
    assert round(cost.router / 1e9, 4) == 0.0406


def test_more_than_half_is_saved_everywhere_by_a_router_that_fits():
    for architecture in ("resnet18", "wrn28_10", "vgg16"):
        assert vision_cost(half(architecture)).saving > 0.5
    assert round(vision_cost(half("densenet40")).saving, 2) == 0.19
    largest = next(cost for cost in smaller_routers(half("densenet40")) if cost.saving > 0.5)
    assert (largest.spec.router, largest.spec.router_width) == ("resnet8", 16)
    assert round(largest.saving, 2) == 0.58


@pytest.mark.parametrize("size", [64, 128, 224])
@pytest.mark.parametrize("architecture", ["resnet18", "wrn28_10", "vgg16"])
def test_more_than_half_is_saved_of_larger_images(architecture, size):
    assert vision_cost(half(architecture, image_size=size, classes=200)).saving > 0.5


def test_the_imagenet_form_is_that_of_the_world():
    cost = vision_cost(VisionSpec("resnet18", image_size=224, classes=1000))
    assert cost.parameters == 11_689_512  # as torchvision's documentation has it
    assert round(cost.macs / 1e9, 2) == 1.81


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("architecture", ["resnet18", "wrn28_10", "vgg16", "densenet40"])
def test_a_pathway_of_ratio_r_takes_r_squared_where_both_sides_are_scaled(architecture, ratio):
    cost = vision_cost(VisionSpec(architecture, experts=3, ratio=ratio))
    dense = {layer.name: layer for layer in cost.dense.layers}
    routed = [layer for layer in cost.layers if layer.part == "routed"]
    scaled = [layer for layer in routed if layer.inputs == ratio * dense[layer.name].inputs]
    assert len(routed) >= 12
    assert len(scaled) >= len(routed) - 1  # the first may read a shared stem of full width
    for layer in scaled:
        assert layer.macs == ratio**2 * dense[layer.name].macs
        assert layer.parameters == 3 * ratio**2 * dense[layer.name].parameters


@pytest.mark.parametrize("placement", ["image", "layer"])
@pytest.mark.parametrize("experts", [0, 1, 3])
@pytest.mark.parametrize("architecture", ALL)
def test_what_is_counted_is_what_is_computed_and_stored(architecture, experts, placement):
    spec = VisionSpec(
        architecture, experts=experts, ratio=0.5, width=0.25, classes=7, router="resnet8", router_width=4,
        placement=placement, image_size=32,
    )  # fmt: skip
    cost = vision_cost(spec)
    model = build_vision(spec, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * cost.macs
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.router_parameters == sum(p.numel() for p in model.router_parameters())
    stored = dict(model.named_parameters())
    for layer in cost.layers:
        assert layer.parameters == sum(p.numel() for name, p in stored.items() if name.rpartition(".")[0] == layer.name)


@pytest.mark.parametrize("architecture", ALL)
def test_active_parameters_are_those_of_one_expert(architecture):
    one, three = (vision_cost(VisionSpec(architecture, experts=experts, ratio=0.5)) for experts in (1, 3))
    assert one.active_parameters == one.parameters
    router = three.router_parameters - one.router_parameters
    assert three.active_parameters == one.active_parameters + router
    assert three.macs - three.router == one.macs - one.router


def test_large_images_are_seen_small_by_the_router():
    cost = vision_cost(half("resnet18", image_size=128, router="small"))
    whole = vision_cost(half("resnet18", image_size=128, router="small", router_size=128))
    assert whole.router > 15 * cost.router
    spec = half("small", image_size=128, router="resnet8", router_width=4, width=0.5)
    model = build_vision(spec, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 128, 128))
    assert counter.get_total_flops() == 2 * vision_cost(spec).macs


def test_another_router_leaves_the_network_as_it_is():
    found = smaller_routers(half("small", image_size=128))
    assert len({(cost.spec.router, cost.spec.router_width) for cost in found}) == 7
    assert found == [vision_cost(cost.spec) for cost in found]
    assert all(one.router > other.router for one, other in itertools.pairwise(found))


def test_a_network_without_a_router_has_no_smaller_one():
    with pytest.raises(OptionError, match="placement='image'"):
        smaller_routers(VisionSpec())
    with pytest.raises(OptionError, match="placement='image'"):
        smaller_routers(half("small", placement="layer"))


def test_a_record_is_json():
    record = json.loads(json.dumps(vision_cost(half("small")).as_record()))
    assert record["macs"] == sum(layer["macs"] for layer in record["layers"])


def test_the_table_of_the_docs_is_computed():
    text = (Path(__file__).parents[2] / "docs" / "vision.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if " | resnet20 | " in line or " | resnet8 | " in line]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert len(rows) == 5
    for architecture, router, *numbers in rows:
        cost = vision_cost(half(architecture, router=router))
        macs = map(count, (cost.dense.macs, cost.small.macs, cost.pathway, cost.macs))
        assert numbers == [*macs, f"{cost.saving:.0%}", count(cost.dense.parameters), count(cost.parameters)]
