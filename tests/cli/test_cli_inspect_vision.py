"""`coterie inspect` of convolutional networks."""

from __future__ import annotations

import json

import pytest


def test_an_architecture_is_shown_with_its_options(coterie):
    result = coterie("inspect", "densenet40", "--option", "router=resnet8", "--option", "experts=3")
    assert result.exit_code == 0, result.output
    assert "densenet40 with 3 experts of 0.5 of its channels" in result.stdout
    assert "58% of the dense network" in result.stdout
    assert result.stderr == ""


def test_json(coterie):
    record = json.loads(coterie("inspect", "small", "--option", "image_size=8", "--json").stdout)
    assert record["spec"]["image_size"] == 8
    assert record["macs"] == record["pathway_macs"] + record["router_macs"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("experts", "NAME=VALUE"),
        ("=2", "NAME=VALUE"),
        ("experts=[", "cannot be read"),
        ("experts=two", "whole number"),
        ("expert=2", "Did you mean 'experts'"),
        ("architecture=vgg", "There is no architecture 'vgg'"),
    ],
)
def test_an_option_that_is_not_allowed(coterie, option, said):
    result = coterie("inspect", "resnet18", "--option", option)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr


def test_a_network_does_not_read(coterie, tmp_path):
    (tmp_path / "notes.txt").write_text("some words of text")
    result = coterie("inspect", "resnet18", "--text", tmp_path / "notes.txt")
    assert result.exit_code != 0
    assert "Traceback" not in result.output
