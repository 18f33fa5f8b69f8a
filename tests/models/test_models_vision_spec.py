"""A convolutional network in numbers and words: what is allowed, and what is said where it is not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.models.vision import NETWORKS, VisionSpec


@given(
    architecture=st.sampled_from(sorted(NETWORKS)),
    experts=st.integers(0, 8),
    ratio=st.floats(0.01, 1.0),
    width=st.floats(0.01, 4.0),
    image_size=st.integers(32, 300),
    norm=st.sampled_from(["per_expert", "shared"]),
    router=st.sampled_from(["resnet20", "resnet14", "resnet8", "small"]),
    gate=st.sampled_from(["softmax", "selected", "prob"]),
    mean=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_a_spec_survives_json(**fields):
    spec = VisionSpec(**fields)
    assert VisionSpec.from_record(json.loads(json.dumps(spec.as_record()))) == spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architecture": "resnet8"}, "resnet18"),
        ({"architecture": "vit"}, "There are: resnet18"),
        ({"router": "resnet21"}, "Did you mean 'resnet20'"),
        ({"gate": "hard"}, "softmax, selected, prob"),
        ({"classes": 1}, "2 or more"),
        ({"channels": 0}, "1 or more"),
        ({"experts": -1}, "0 or more"),
        ({"experts": 2.0}, "whole number"),
        ({"experts": True}, "whole number"),
        ({"ratio": 0}, "above 0"),
        ({"ratio": 1.5}, "at most 1"),
        ({"ratio": float("nan")}, "above 0"),
        ({"ratio": "half"}, "above 0"),
        ({"width": float("inf")}, "above 0"),
        ({"router_width": 0}, "1 or more"),
        ({"router_bound": -1.0}, "above 0"),
        ({"router_size": 64}, "more than image_size=32"),
        ({"image_size": 3}, "4 pixels or more"),
        ({"architecture": "vgg16", "image_size": 8}, "16 pixels or more"),
        ({"stem": "imagenet", "image_size": 16}, "32 pixels or more"),
        ({"mean": (0.5, 0.5)}, "2 numbers for 3 channels"),
        ({"std": (0.0,)}, "above 0"),
        ({"std": ()}, "must be numbers"),
        ({"mean": "half"}, "must be numbers"),
        ({"mean": (float("nan"),)}, "must be numbers"),
    ],
)
def test_what_is_not_allowed_is_said(fields, said):
    with pytest.raises(OptionError, match=said):
        VisionSpec(**fields)


def test_an_unknown_field_is_named_with_the_nearest():
    with pytest.raises(OptionError, match=r"'expert'\. Did you mean 'experts'"):
        VisionSpec.from_record({"expert": 2})


def test_one_number_stands_for_all_channels():
    assert VisionSpec(mean=0.5).mean == (0.5,)


def test_the_form_follows_the_size_of_the_images():
    assert [VisionSpec(image_size=size).large_stem for size in (32, 64, 128, 224)] == [False, False, True, True]
    assert [VisionSpec(image_size=size).seen_size for size in (32, 64, 128, 224)] == [32, 64, 32, 56]
    assert not VisionSpec("vgg16", image_size=224).large_stem
    assert VisionSpec(stem="imagenet", image_size=64).large_stem
    assert not VisionSpec(stem="cifar", image_size=224).large_stem


def test_a_spec_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VisionSpec().classes = 3
