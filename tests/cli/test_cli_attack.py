"""`coterie attack` as a newcomer types it: the sheet, the page, JSON, a model not to be trusted, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from coterie.models.vision import VisionSpec, build_vision, save_vision

SPEC = VisionSpec(
    "small", classes=3, channels=1, image_size=8, experts=2, ratio=0.5, width=0.5, router="small", router_width=4
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network that tells where an image is bright, one that answers all alike, one that holds NaN, and images."""
    home = tmp_path_factory.mktemp("attack")
    torch.manual_seed(0)
    labels = torch.arange(40) % 3
    images = torch.rand(40, 1, 8, 8) * 0.5
    images += (
        torch.nn.functional.one_hot(labels, 4).view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) / 2
    )
    model = build_vision(SPEC, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    save_vision(model.eval(), home / "model")
    with torch.no_grad():
        last = [layer for layer in model.network.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.weight.zero_()
        save_vision(model, home / "constant")
    np.savez(home / "data.npz", images=images.numpy(), labels=labels.numpy())
    np.savez(home / "wild.npz", images=images.numpy() * 2, labels=labels.numpy())
    np.savez(home / "many.npz", images=images.numpy(), labels=np.arange(40))
    np.savez(home / "large.npz", images=torch.rand(4, 1, 9, 9).numpy(), labels=np.arange(4) % 2)
    (home / "text.npz").write_text("no archive")
    (home / "damaged").mkdir()
    (home / "damaged" / "config.json").write_bytes((home / "model" / "config.json").read_bytes())
    whole = (home / "model" / "model.safetensors").read_bytes()
    (home / "damaged" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with torch.no_grad():
        last.weight.fill_(float("nan"))
    from safetensors.torch import save_file

    (home / "nan").mkdir()
    (home / "nan" / "config.json").write_bytes((home / "model" / "config.json").read_bytes())
    save_file(model.state_dict(), home / "nan" / "model.safetensors")
    return home


def test_the_sheet_and_the_page(coterie, place, tmp_path):
    page = tmp_path / "attack.html"
    done = coterie(
        "attack", place / "model", place / "data.npz", "--epsilon", "0.1", "--steps", 20, "--images", 30,
        "--report", page, "--released",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "under attack: 30 of 40 images" in done.stdout
    assert "L-inf epsilon 0.1, 20 steps of 0.025, seed 0" in done.stdout
    assert "no reason for doubt" in done.stdout
    assert "released evaluation" in done.stdout
    assert f"Written: {page}" in done.stdout
    assert "data:image/png;base64," in page.read_text()
    assert "Traceback" not in done.output


def test_json(coterie, place):
    done = coterie(
        "attack", place / "model", place / "data.npz", "--epsilon", "2/255", "--steps", 3, "--step-size", "1/255",
        "--restarts", 2, "--images", 20, "--seed", 3, "--batch", 7, "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["clean_accuracy"] == 1
    assert record["threat"] == {
        "epsilon": 2 / 255, "steps": 3, "step_size": 1 / 255, "restarts": 2, "images": 20, "seed": 3, "batch": 7,
        "norm": "inf",
    }  # fmt: skip
    assert record["trusted"] is True
    assert done.stderr == ""


def test_what_is_not_to_be_trusted_ends_with_an_exit_code_and_the_whole_report(coterie, place):
    done = coterie("attack", place / "constant", place / "data.npz", "--steps", 2, "--images", 20)
    assert done.exit_code == 1
    assert "NOT TO BE TRUSTED: gradients" in done.stdout
    assert "not to be trusted; the checks that failed say why" in done.stderr
    done = coterie("attack", place / "constant", place / "data.npz", "--steps", 2, "--images", 20, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["trusted"] is False


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["{home}/none", "{home}/data.npz"], "There is no directory", 3),
        (["pocket", "{home}/data.npz"], "There is no directory", 3),
        (["{tiny}", "{home}/data.npz"], "not a convolutional network", 3),
        (["{home}/nan", "{home}/data.npz"], "NaN", 3),
        (["{home}/damaged", "{home}/data.npz"], "model.safetensors", 3),
        (["{home}/model", "{home}/none.npz"], "There are no images", 2),
        (["{home}/model", "{home}/text.npz"], "text.npz", 2),
        (["{home}/model", "{home}/wild.npz"], "[0, 1]", 2),
        (["{home}/model", "{home}/many.npz"], "3 classes", 2),
        (["{home}/model", "{home}/large.npz"], "1 x 8 x 8", 2),
        (["{home}/model", "{home}/data.npz", "--epsilon", "8"], "at most 1", 2),
        (["{home}/model", "{home}/data.npz", "--epsilon", "-1/255"], "above 0", 2),
        (["{home}/model", "{home}/data.npz", "--epsilon", "eight"], "8/255", 2),
        (["{home}/model", "{home}/data.npz", "--step-size", "2"], "step size", 2),
        (["{home}/model", "{home}/data.npz", "--steps", "0"], "steps must be 1", 2),
        (["{home}/model", "{home}/data.npz", "--images", "0"], "images must be 1", 2),
        (["{home}/model", "{home}/data.npz", "--device", "abacus"], "no device", 2),
        (["{home}/model", "{home}/data.npz", "--report", "{home}/no/page.html"], "There is no directory", 2),
        (["{home}/model", "{home}/data.npz", "--report", "{home}"], "is a directory", 2),
        (["{home}/model", "digits:half"], "digits:test", 2),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, words, code, coterie, place, tiny):
    before = sorted(place.rglob("*"))
    done = coterie("attack", *(one.format(home=place, tiny=tiny) for one in arguments))
    assert done.exit_code == code, done.output
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert sorted(place.rglob("*")) == before


def test_a_missing_toolbox_says_what_to_type(coterie, place, monkeypatch):
    monkeypatch.setattr("coterie.jobs.attacking.art.find_spec", lambda name: None)
    done = coterie("attack", place / "model", place / "data.npz", "--art")
    assert done.exit_code == 1
    assert "pip install 'coterie[attacks]'" in done.stderr
