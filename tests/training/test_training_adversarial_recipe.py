"""Recipes of robust training: those that ship, what they may say, and the directories that come out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from coterie.errors import OptionError, TrainingError
from coterie.models.vision import load_vision
from coterie.training.adversarial import Attack, Descent, RobustLosses
from coterie.training.adversarial.making import train_robust
from coterie.training.adversarial.recipe import read_robust_recipe, robust_recipe_of, shipped_robust_recipes
from coterie.training.images import ImageData

WORDS = {
    "model": {"architecture": "small", "experts": 2, "ratio": 0.25, "router": "small"},
    "attack": {"epsilon": "8/255", "steps": 1, "step_size": "4/255"},
    "losses": {"beta": 1, "drift": 1},
    "training": {"regime": "alternating", "epochs": 2, "batch": 8, "rate": 0.05, "log_every": 1},
    "router": {"kind": "adam", "rate": 2e-3, "weight_decay": 0, "norm": "running"},
    "data": {"validation": 0.25},
}


def images(count=24, size=(8, 8), channels=1, classes=3):
    pictures = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))
    return ImageData(pictures, torch.arange(count) % classes, tuple("abcdef"[:classes]), "mine")


def changed(**sections):
    return robust_recipe_of({**WORDS, **sections}, "mine")


def test_the_recipes_that_ship_are_the_four_regimes_of_the_paper():
    recipes = {name: read_robust_recipe(name) for name in shipped_robust_recipes()}
    assert recipes.keys() == {"advmoe", "advmoe-digits", "at-dense", "at-moe", "at-s-dense"}
    specs = {name: recipe.spec(images(channels=3, size=(32, 32))) for name, recipe in recipes.items()}
    assert (specs["at-dense"].experts, specs["at-dense"].ratio) == (0, 1)
    assert (specs["at-s-dense"].experts, specs["at-s-dense"].ratio) == (0, 0.5)
    assert (specs["at-moe"].experts, specs["advmoe"].experts) == (2, 2)
    assert specs["at-moe"] == specs["advmoe"]
    options = {name: recipe.options for name, recipe in recipes.items()}
    assert {name: each.regime for name, each in options.items() if each.regime != "joint"} == {
        "advmoe": "alternating", "advmoe-digits": "alternating",
    }  # fmt: skip
    ascent = options["advmoe"].ascent
    assert (ascent.epsilon, ascent.steps, ascent.step_size, ascent.aim) == (8 / 255, 10, 2 / 255, "kl+router")
    assert options["at-moe"].ascent.aim == "kl"
    assert options["advmoe"].judge.aim == "ce"
    assert options["advmoe"].experts == Descent("sgd", 0.1, 0.9, 5e-4)


def test_every_word_has_its_place():
    recipe = changed(seed=7, judge={"steps": 3, "keep": "worst"})
    options = recipe.options
    assert (options.epochs, options.batch, options.seed, options.augment) == (2, 8, 7, True)
    assert options.losses == RobustLosses("trades", 1, 1)
    assert options.router == Descent("adam", 2e-3, weight_decay=0)
    assert options.router_norm == "running"
    assert options.judge == Attack(8 / 255, 3, 4 / 255, keep="worst")
    assert changed(router=None).options.router is None
    pgd = changed(losses={"form": "pgd"}, training={"regime": "joint"}).options.ascent
    assert (pgd.aim, pgd.start) == ("ce", "uniform")


def test_the_network_is_that_of_the_images():
    data = images(size=(12, 12), channels=3, classes=4)
    spec = changed().spec(data)
    assert (spec.classes, spec.channels, spec.image_size) == (4, 3, 12)
    assert spec.mean == pytest.approx(data.images.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert spec.std == pytest.approx(data.images.std((0, 2, 3)).tolist(), abs=1e-3)
    plain = changed(data={"normalise": False}).spec(data)
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))
    grey = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    assert changed().spec(grey).std == (1e-4,)
    with pytest.raises(OptionError, match="8 x 9 are not square"):
        changed().spec(images(size=(8, 9)))
    with pytest.raises(OptionError, match=r"mine, for mine: .* pixels or more"):
        changed(model={"architecture": "vgg16"}).spec(images())


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"modell": {}}, "has no 'modell'. Did you mean 'model'"),
        ({"model": {"classes": 3}}, "has no 'classes'"),
        ({"model": {"init": "zeros"}}, "model.init cannot be 'zeros'"),
        ({"model": {"experts": "two"}}, "model.experts must be"),
        ({"model": {"architecture": "resnet"}}, "Did you mean 'resnet18'"),
        ({"attack": {"epsilon": "3/2"}}, "mine: attack: epsilon=1.5 must be"),
        ({"attack": {"epsilon": "1/0"}}, "must be a number"),
        ({"attack": {"stepsize": 1}}, "Did you mean 'step_size'"),
        ({"attack": {"start": "none"}}, "no slope"),
        ({"judge": {"steps": 0}}, "mine: judge"),
        ({"losses": {"eta": 1}}, "has no 'eta'"),
        ({"losses": {"beta": -1}}, "mine: losses"),
        ({"training": {"regime": "both"}}, "training.regime cannot be 'both'"),
        ({"training": {"epochs": 0}}, "epochs must be at least 1"),
        ({"training": {"rate": 0}}, "mine: training"),
        ({"router": {"norm": "none"}}, "router.router_norm cannot be 'none'"),
        ({"data": {"validation": 1}}, "mine: data"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_what_it_may_not_say(sections, text):
    with pytest.raises(OptionError, match=text):
        changed(**sections)


def test_files_and_changes(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(WORDS))
    recipe = read_robust_recipe(path, [("training.epochs", 5), ("seed", 3), ("judge.steps", 4), ("data.size", 16)])
    assert (recipe.name, recipe.options.epochs, recipe.options.seed) == ("own", 5, 3)
    assert (recipe.options.judge.steps, recipe.data.size) == (4, 16)
    assert recipe.words["training"]["epochs"] == 5
    with pytest.raises(OptionError, match=r"There is no recipe .*advmoe-digits"):
        read_robust_recipe("advmo")
    path.write_text("model: [")
    with pytest.raises(OptionError, match="is not YAML"):
        read_robust_recipe(path)
    path.write_text("just words")
    with pytest.raises(OptionError, match="own must be a group"):
        read_robust_recipe(path)


# ---- making


FILES = {"config.json", "model.safetensors", "README.md", "report.json", "report.html", "robust.svg", "recipe.yaml"}


def test_a_recipe_becomes_a_classifier_with_report_and_card(tmp_path):
    outcome = train_robust(changed(training={**WORDS["training"], "epochs": 3}), images(), tmp_path / "own")
    names = {file.name for file in (tmp_path / "own").iterdir()}
    assert names - {"last"} == FILES
    assert not (tmp_path / "own.work").exists()
    model = load_vision(tmp_path / "own")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, outcome.model.state_dict()[name])
    report = json.loads((tmp_path / "own" / "report.json").read_text())
    assert report["steps"] == 6
    assert report["images"] == {"source": "mine", "learned": 18, "held": 6, "classes": ["a", "b", "c"]}
    assert report["best"]["robust_accuracy"] == outcome.judged.robust_accuracy
    assert len(report["history"]["accuracy"]) == 3
    assert len(report["history"]["shares"]) == 7
    assert report["cost"]["macs"] < report["cost"]["dense_macs"]
    assert {"loss", "divergence", "router_loss", "router_drift"} <= report["history"]["terms"].keys()
    page = (tmp_path / "own" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "Routes" in page
    card = (tmp_path / "own" / "README.md").read_text()
    assert f"{report['best']['robust_accuracy']:.1%}" in card
    assert "8/255" in card
    assert yaml.safe_load((tmp_path / "own" / "recipe.yaml").read_text())["losses"] == WORDS["losses"]


def test_the_best_is_kept_and_the_last_beside_it(tmp_path, monkeypatch):
    from coterie.training.adversarial import fit
    from coterie.training.adversarial.judge import Judged

    told = iter([Judged(0.5, 0.4, (3, 3)), Judged(0.5, 0.2, (3, 3))])
    monkeypatch.setattr(fit, "judge", lambda *args, **words: next(told))
    outcome = train_robust(changed(), images(), tmp_path / "own")
    assert outcome.run.best.step == 2
    assert outcome.judged.robust_accuracy == 0.4
    best, last = load_vision(tmp_path / "own"), load_vision(tmp_path / "own" / "last")
    assert not torch.equal(best.network.head.weight, last.network.head.weight)
    assert "`last/` has the last" in (tmp_path / "own" / "README.md").read_text()


def test_a_router_that_collapsed_is_named_on_the_card(tmp_path, monkeypatch):
    from coterie.training.adversarial import fit
    from coterie.training.adversarial.judge import Judged

    monkeypatch.setattr(fit, "judge", lambda *args, **words: Judged(0.5, 0.4, (6, 0)))
    train_robust(changed(), images(), tmp_path / "own")
    assert "**One route has 100% of the images**" in (tmp_path / "own" / "README.md").read_text()


def test_a_dense_recipe_without_validation(tmp_path):
    dense = {"architecture": "small", "ratio": 0.25}
    recipe = robust_recipe_of({"model": dense, "training": {"epochs": 1, "batch": 8}, "data": {"validation": 0}})
    outcome = train_robust(recipe, images(), tmp_path / "own")
    assert outcome.judged is None
    assert {file.name for file in (tmp_path / "own").iterdir()} == FILES
    assert "nothing is known of its accuracy" in (tmp_path / "own" / "README.md").read_text()


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Stop

    return progress


def test_stopped_and_resumed_the_files_are_the_same(tmp_path):
    recipe = changed()
    train_robust(recipe, images(), tmp_path / "whole")
    with pytest.raises(Stop):
        train_robust(recipe, images(), tmp_path / "parts", progress=stop_at(3))
    with pytest.raises(OptionError, match="Add --resume"):
        train_robust(recipe, images(), tmp_path / "parts")
    with pytest.raises(OptionError, match="by another recipe"):
        train_robust(changed(losses={"beta": 3}), images(), tmp_path / "parts", resume=True)
    other = images(27)
    with pytest.raises(OptionError, match="with other images"):
        train_robust(recipe, other, tmp_path / "parts", resume=True)
    train_robust(recipe, images(), tmp_path / "parts", resume=True)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == two


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path):
    out = tmp_path / "own"
    alone = ImageData(torch.rand(5, 1, 8, 8), torch.tensor([0, 0, 1, 1, 2]), ("a", "b", "c"), "mine")
    one = ImageData(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("a",), "mine")
    dense = changed(model={"architecture": "small"})
    for recipe, data, text in (
        (changed(), alone, "class 'c' has one image"),
        (changed(), one, "has one class"),
        (dense, images(), "this model has none"),
    ):
        with pytest.raises(OptionError, match=text):
            train_robust(recipe, data, out)
    with pytest.raises(OptionError, match="no finished checkpoint"):
        train_robust(changed(), images(), out, resume=True)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(OptionError, match="exists already"):
        train_robust(changed(), images(), out)


def test_a_divergence_ends_the_run_and_a_lower_rate_may_go_on(tmp_path):
    fast = {**WORDS["training"], "regime": "joint", "rate": 1e12}
    with pytest.raises(TrainingError, match="At step"):
        train_robust(changed(training=fast, losses={"beta": 1}), images(), tmp_path / "fast")
    assert not (tmp_path / "fast").exists()
    with pytest.raises(Stop):
        train_robust(changed(), images(), tmp_path / "own", progress=stop_at(3))
    lower = changed(training={**WORDS["training"], "rate": 1e-3}, router={**WORDS["router"], "rate": 1e-4})
    train_robust(lower, images(), tmp_path / "own", resume=True)
    assert load_vision(tmp_path / "own").spec.experts == 2


def test_images_may_be_named(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=array, y=np.arange(16) % 2)
    outcome = train_robust(changed(), tmp_path / "a.npz", tmp_path / "own")
    assert (outcome.images, outcome.held) == (12, 4)
    report = json.loads((tmp_path / "own" / "report.json").read_text())
    assert report["images"]["source"] == "a.npz"
