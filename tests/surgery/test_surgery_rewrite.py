"""Checkpoints with other experts: identities, containers, fresh processes, and what the disk has to say about it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import coterie
from coterie.errors import OptionError, UnsupportedError
from coterie.models import open_checkpoint
from coterie.models.compat import auto_class, quiet
from coterie.surgery import Method, NewLayer, read_layer, rewrite
from coterie.surgery.verify import logits_of, probe_ids
from coterie.testing.checkpoints import save_tiny
from coterie.testing.families import save_tiny_family, tiny_family
from coterie.testing.quantised import QUANTISED, save_tiny_quantised

FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss")
ABOUT = Method("merge", "lossy", "Experts were put together.", "A paper, arXiv 0000.00000", {"tokens": 12}, {"k": 2})


def saved(path, family, **options):
    if family == "gpt_oss":
        return open_checkpoint(save_tiny_family(path, tiny_family(family)))
    return open_checkpoint(save_tiny(path, family, **options))


def same(layer):
    return layer.unchanged()


def first(count):
    """The first experts stay, with their rows."""

    def edit(layer):
        return NewLayer(
            {name: weight[:count] for name, weight in layer.weights.items()},
            {name: rows[:count] for name, rows in layer.router.items()},
            about={"kept": count},
        )

    return edit


def folded(count):
    """All rows stay; route r leads to expert r modulo count."""

    def edit(layer):
        weights = {name: weight[:count] for name, weight in layer.weights.items()}
        return NewLayer(weights, layer.router, tuple(route % count for route in range(layer.num_routes)))

    return edit


def raw(checkpoint):
    return {
        name: (part.dtype, part.shape, part.path.read_bytes()[part.start : part.end])
        for name, part in checkpoint.ranges.items()
    }


def logits(path):
    checkpoint = open_checkpoint(path)
    with quiet():
        model = auto_class(checkpoint.config).from_pretrained(path, dtype=torch.float32).eval()
    return logits_of(model, probe_ids(checkpoint, 12))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_that_does_nothing_gives_the_same_bytes(tmp_path, family):
    source = saved(tmp_path / "a", family)
    made = rewrite(source, tmp_path / "b", same, about=ABOUT, max_shard=40_000)
    assert made.container == "native"
    assert made.before.parameters == made.after.parameters
    assert raw(open_checkpoint(made.path)) == raw(source)
    assert torch.equal(logits(made.path), logits(source.path))
    assert len(list(made.path.glob("model-*-of-*.safetensors"))) > 1
    assert not (tmp_path / "b.part").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("edit", "container"), [(first(6), "native"), (folded(4), "alias"), (folded(8), "native")],
    ids=["fewer", "alias", "all"],
)  # fmt: skip
def test_the_written_model_answers_as_the_edit(tmp_path, family, edit, container):
    if family == "deepseek_v3" and container == "native":
        edit = folded(8)  # four groups of experts, two at least in each: eight of eight
    source = saved(tmp_path / "a", family)
    made = rewrite(source, tmp_path / "b", edit, about=ABOUT)
    assert made.container == container
    assert made.difference < 1e-4
    host = coterie.load(made.path, context=32, prefill=32, all_logits=True)
    found = logits_of(host, probe_ids(source, 12))
    host.coterie.close()
    torch.testing.assert_close(found, logits(made.path), rtol=2e-4, atol=2e-4)


def test_layers_may_have_unequal_numbers(tmp_path):
    source = saved(tmp_path / "a", "qwen3_moe")
    made = rewrite(source, tmp_path / "b", lambda layer: first(8 - 3 * layer.site.layer)(layer), about=ABOUT)
    assert (made.container, made.after.experts) == ("coterie", (8, 5))
    assert made.layers == {0: {"kept": 8}, 1: {"kept": 5}}
    again = rewrite(open_checkpoint(made.path), tmp_path / "c", same, about=ABOUT)
    assert again.container == "coterie"
    assert torch.equal(logits(again.path), logits(made.path))
    uniform = rewrite(open_checkpoint(made.path), tmp_path / "d", first(5), about=ABOUT)
    assert uniform.container == "native"
    assert open_checkpoint(uniform.path).config.num_experts == 5


def test_merging_identical_experts_with_a_map_changes_no_logit(tmp_path):
    source = saved(tmp_path / "a", "mixtral")

    def twins(layer):
        pairs = [route - route % 2 for route in range(8)]
        return NewLayer({name: weight[pairs] for name, weight in layer.weights.items()}, layer.router)

    doubled = rewrite(source, tmp_path / "b", twins, about=ABOUT)

    def merged(layer):
        weights = {name: weight[::2] for name, weight in layer.weights.items()}
        return NewLayer(weights, layer.router, tuple(route // 2 for route in range(8)))

    made = rewrite(open_checkpoint(doubled.path), tmp_path / "c", merged, about=ABOUT)
    torch.testing.assert_close(logits(made.path), logits(doubled.path), rtol=1e-5, atol=1e-5)
    assert made.after.parameters < doubled.after.parameters


def test_native_loads_where_coterie_is_not(tmp_path):
    source = saved(tmp_path / "a", "qwen3_moe")
    made = rewrite(source, tmp_path / "b", first(6), about=ABOUT)
    alias = rewrite(source, tmp_path / "c", folded(4), about=ABOUT)
    program = (
        "import sys, torch; sys.modules['coterie'] = None\n"
        "from transformers import AutoModelForCausalLM as M\n"
        f"model = M.from_pretrained({str(made.path)!r}, dtype=torch.float32).eval()\n"
        "print(model.config.num_experts, float(model(torch.arange(9)[None]).logits.sum()))\n"
        f"try: M.from_pretrained({str(alias.path)!r})\nexcept ValueError as error: print('coterie' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, total, refused = done.stdout.split()
    with quiet():
        model = auto_class(source.config).from_pretrained(made.path, dtype=torch.float32).eval()
    expected = float(model(torch.arange(9)[None]).logits.detach().sum())
    assert (int(count), refused) == (6, "True")
    assert float(total) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_a_saved_alias_model_comes_back(tmp_path):
    made = rewrite(saved(tmp_path / "a", "olmoe"), tmp_path / "b", folded(3), about=ABOUT)
    with quiet():
        model = auto_class(open_checkpoint(made.path).config).from_pretrained(made.path, dtype=torch.float32)
        model.save_pretrained(tmp_path / "c")
    assert torch.equal(logits(tmp_path / "c"), logits(made.path))


def test_the_card_says_what_was_done(tmp_path):
    made = rewrite(saved(tmp_path / "a", "mixtral"), tmp_path / "b", first(4), about=ABOUT)
    card = (made.path / "README.md").read_text()
    for words in (
        "base_model: a",
        ABOUT.summary,
        ABOUT.paper,
        "**lossy**",
        "| tokens | 12 |",
        "| k | 2 |",
        "AutoModel",
    ):
        assert words in card
    assert str(tmp_path) not in card
    assert (made.path / "tokenizer.json").read_bytes() == (tmp_path / "a" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("family", "method"), QUANTISED)
def test_quantised_experts_become_floats(tmp_path, family, method):
    sizes = {"width": 64, "inner": 32} if family == "gpt_oss" else {}
    source = open_checkpoint(save_tiny_quantised(tmp_path / "a", family, method, **sizes))
    made = rewrite(source, tmp_path / "b", same, about=ABOUT)
    written = open_checkpoint(made.path)
    assert written.quantization is None
    assert made.difference < 1e-3
    before, after = read_layer(source, source.sites[0]), read_layer(written, written.sites[0])
    for name, weight in before.weights.items():
        assert torch.equal(weight, after.weights[name])


def test_a_container_that_cannot_say_it_says_why(tmp_path):
    source = saved(tmp_path / "a", "mixtral")
    for edit, words in ((folded(4), "alias container"), (lambda layer: first(8 - layer.site.layer)(layer), "uniform")):
        with pytest.raises(OptionError, match=words):
            rewrite(source, tmp_path / "b", edit, about=ABOUT, container="native")
    own = open_checkpoint(save_tiny_family(tmp_path / "dbrx", tiny_family("dbrx")))
    with pytest.raises(UnsupportedError, match="way of its own"):
        rewrite(own, tmp_path / "b", folded(4), about=ABOUT)
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "b.part").exists()


def test_gates_keep_what_they_choose_by(tmp_path):
    source = saved(tmp_path / "a", "deepseek_v3")
    with pytest.raises(OptionError, match=r"4 groups of experts.*Allowed near it: 8"):
        rewrite(source, tmp_path / "b", first(6), about=ABOUT)
    with pytest.raises(OptionError, match="sent to 2 experts, 1 would be left"):
        rewrite(saved(tmp_path / "m", "mixtral"), tmp_path / "b", first(1), about=ABOUT)


def test_edits_that_do_not_fit_are_refused(tmp_path):
    source = saved(tmp_path / "a", "mixtral")

    def with_nan(layer):
        return NewLayer({**layer.weights, "up_proj": layer.weights["up_proj"] * float("nan")}, layer.router)

    def short_gate(layer):
        return NewLayer(layer.weights, {"weight": layer.router["weight"][:3]})

    def orphan(layer):
        return NewLayer(layer.weights, layer.router, (0,) * 8)

    def ungated(layer):
        return NewLayer({name: w for name, w in layer.weights.items() if name != "gate_proj"}, layer.router)

    for edit, words in (
        (with_nan, "NaN"),
        (short_gate, "8 rows"),
        (orphan, "needs a route"),
        (ungated, "an expert has"),
    ):
        with pytest.raises(OptionError, match=words):
            rewrite(source, tmp_path / "b", edit, about=ABOUT)
        assert not list(tmp_path.glob("b*"))


def test_each_layer_is_edited_once(tmp_path):
    source, calls = saved(tmp_path / "a", "mixtral"), []

    def fickle(layer):
        calls.append(layer.site.layer)
        return NewLayer({name: w * (1 + len(calls)) for name, w in layer.weights.items()}, layer.router)

    rewrite(source, tmp_path / "b", fickle, about=ABOUT)
    assert calls == [0, 1]
