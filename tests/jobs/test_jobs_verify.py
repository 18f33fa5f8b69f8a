"""`verify` finds what is wrong, says where, and has a reference for models larger than the machine."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch

from coterie.cli.verify import NOT_EQUAL
from coterie.jobs import verify as verify_function
from coterie.models.resident import resident_experts
from coterie.testing.checkpoints import save_tiny

# by import_module: the room exports a function of the same name
MODULE = import_module("coterie.jobs.running.verify")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("verify") / "tiny", "olmoe", experts=16, k=4)


def wrong_experts(site):
    experts = resident_experts(site)
    with torch.no_grad():
        experts.down_proj[3] += 0.01
    return experts


@pytest.mark.parametrize("new_tokens", [0, 5])
def test_equal_bits_are_found_equal(tiny, new_tokens):
    report = verify_function(tiny, slots=3, new_tokens=new_tokens, batch=2)
    assert report.holds
    assert report.reference == "everything resident"
    assert report.transformers.holds
    json.dumps(report.as_record())


def test_a_model_that_does_not_fit_is_held_against_one_slot(tiny, monkeypatch):
    monkeypatch.setattr(MODULE, "_fits", lambda checkpoint: False)
    report = verify_function(tiny, slots=7, new_tokens=3)
    assert report.holds
    assert report.reference == "one expert slot, demand only"
    assert "does not fit" in report.transformers_skipped


def test_the_first_difference_is_shown(tiny, monkeypatch):
    monkeypatch.setattr(MODULE, "resident_experts", wrong_experts)
    report = verify_function(tiny, slots=3, new_tokens=2)
    assert not report.holds
    assert report.difference.found != report.difference.expected
    assert f"position {report.difference.position}" in str(report.difference)


def test_the_command_says_so_and_fails(tiny, monkeypatch):
    from typer.testing import CliRunner

    from coterie.cli import app

    monkeypatch.setattr(MODULE, "resident_experts", wrong_experts)
    result = CliRunner().invoke(app, ["verify", str(tiny), "--no-transformers"])
    assert result.exit_code == NOT_EQUAL
    assert "NOT identical, first at sequence" in result.stdout
