from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.errors import OptionError
from coterie.training import train_pocket
from coterie.training.card import write_card
from coterie.training.pocket import recipe_for
from coterie.training.trainer import last_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory, texts, small):
    """A finished model: (directory, losses)."""
    losses, out = [], tmp_path_factory.mktemp("pocket") / "model"
    train_pocket(out, texts, recipe=small(8), progress=lambda step, steps, loss: losses.append(loss))
    return out, losses


class Stop(Exception):
    """Stands for whatever ends a run."""


def stop_at(wanted):
    def progress(step, steps, loss):
        if step == wanted:
            raise Stop

    return progress


def test_training_learns(trained):
    _, losses = trained
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5


def test_what_it_saves_is_a_servable_checkpoint(trained):
    from coterie.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(trained[0])
    assert [site.num_experts for site in checkpoint.sites] == [4, 4]
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    assert model.dtype == torch.bfloat16
    assert not model.config.output_router_logits
    assert AutoTokenizer.from_pretrained(trained[0]).decode([3]) != ""


def test_work_is_tidied_away(trained):
    assert [path.name for path in trained[0].parent.iterdir()] == ["model"]


def test_the_card_says_what_was_measured(trained):
    out, _ = trained
    card, measures = (out / "README.md").read_text(), json.loads((out / "measures.json").read_text())
    for domain, numbers in measures["perplexity"].items():
        assert f"| {domain} | {numbers['model']:.2f} | {numbers['trigram']:.2f} |" in card
        assert numbers["trigram"] == min(numbers["trigram_all_text"], numbers["trigram_own_text"])
    assert "--steps 8 --seed 0" in card
    assert "plan was changed" not in card
    assert "not stated" in card
    assert (out / "loss.svg").read_text().count("<polyline") == 3
    assert set(json.loads((out / "samples.json").read_text())) == {"manuals", "stories"}


def test_the_card_can_be_written_anew(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").unlink()
    write_card(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == (trained[0] / "README.md").read_bytes()


def test_stopped_and_resumed_is_the_same_model(trained, texts, small, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(Stop):
        train_pocket(out, texts, recipe=small(8), progress=stop_at(5))
    assert not out.exists()
    with pytest.raises(OptionError, match="--resume"):
        train_pocket(out, texts, recipe=small(8))
    train_pocket(out, texts, recipe=small(8), resume=True)
    expected = load_file(trained[0] / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in load_file(out / "model.safetensors").items())


def test_a_plan_that_was_changed_is_told(texts, small, tmp_path):
    with pytest.raises(Stop):
        train_pocket(tmp_path / "model", texts, recipe=small(9), progress=stop_at(5))
    train_pocket(tmp_path / "model", texts, recipe=small(6), resume=True)
    card = " ".join((tmp_path / "model" / "README.md").read_text().split())
    assert "from step 0 9 steps with 4 of decay; from step 3 6 steps with 3 of decay" in card


def test_a_stop_while_measuring_loses_no_training(texts, small, tmp_path, monkeypatch):
    from coterie.training import pocket

    def stopped(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(pocket, "finish", stopped)
        with pytest.raises(Stop):
            train_pocket(tmp_path / "model", texts, recipe=small(3))
    assert last_checkpoint(tmp_path / "model.work").name == "checkpoint-3"
    steps = []
    train_pocket(tmp_path / "model", texts, recipe=small(3), resume=True, progress=lambda step, *_: steps.append(step))
    assert steps == []
    assert (tmp_path / "model" / "README.md").exists()


def test_a_stop_before_the_first_checkpoint_is_in_nobodys_way(texts, small, tmp_path):
    with pytest.raises(Stop):
        train_pocket(tmp_path / "model", texts, recipe=small(4), progress=stop_at(2))
    assert (tmp_path / "model.work").exists()
    losses = []
    train_pocket(tmp_path / "model", texts, recipe=small(2), progress=lambda step, steps, loss: losses.append(loss))
    assert len(losses) == 2


def test_files_of_others_are_never_removed(texts, small, tmp_path):
    (tmp_path / "model.work").mkdir()
    (tmp_path / "model.work" / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match=r"thesis\.txt is in the way"):
        train_pocket(tmp_path / "model", texts, recipe=small(2))
    assert (tmp_path / "model.work" / "thesis.txt").exists()


def test_sources_are_told_and_kept(texts, small, tmp_path):
    sources = tmp_path / "from.json"
    sources.write_text(json.dumps({"stories": {"what": "tales", "licence": "CC0", "attribution": "by nobody"}}))
    train_pocket(tmp_path / "model", texts, domains=["stories"], sources=sources, recipe=small(2))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| stories | tales | CC0 |" in card
    assert "- stories: by nobody" in card


def test_what_cannot_be_done_is_refused_before_anything_is_written(trained, texts, small, tmp_path):
    with pytest.raises(OptionError, match="exists already"):
        train_pocket(trained[0], texts, recipe=small(2))
    with pytest.raises(OptionError, match="no finished checkpoint"):
        train_pocket(tmp_path / "model", texts, recipe=small(2), resume=True)
    (tmp_path / "from.json").write_text("[1, 2]")
    with pytest.raises(OptionError, match="where the text is from"):
        train_pocket(tmp_path / "model", texts, sources=tmp_path / "from.json", recipe=small(2))
    assert [path.name for path in tmp_path.iterdir()] == ["from.json"]


def test_the_recipe_of_the_shipped_model_is_the_default():
    assert recipe_for(5, 3).options.steps == 5
    assert recipe_for(5, 3).options.seed == 3
    assert recipe_for().shape["num_experts"] == 16
