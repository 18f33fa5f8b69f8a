"""Merging and pruning end to end: copies become what they were copies of, and results load where they should."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import coterie
import coterie.models
from coterie.errors import CheckpointError, OptionError, PromptError, UnsupportedError
from coterie.jobs.shrinking.calibrated import calibrated
from coterie.jobs.shrinking.merge import merge
from coterie.jobs.shrinking.prune import prune
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.models.checkpoint import open_checkpoint
from coterie.ops.align import permute_neurons
from coterie.surgery import Method, NewLayer, rewrite
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer
from coterie.testing.families import save_tiny_family, tiny_family

TEXT = {"made up": "\n".join(f"On day {day} the otter swam to weir {day * 7 % 11}." for day in range(24))}
FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss")
# expert of the small model that each expert of the large one is a copy of; DeepSeek's groups of four hold two each
COPIES = {"deepseek_v3": (0, 1, 0, 1, 2, 3, 3, 2)}
USUAL = (0, 1, 2, 3, 2, 0, 1, 3)


def doubled(layer, copies):
    """Each expert twice, hidden neurons in another order, rows of the gate a little apart."""
    generator = torch.Generator().manual_seed(layer.site.layer)
    made = [
        permute_neurons(layer.expert(e), torch.randperm(layer.shape.inner, generator=generator)) for e in copies
    ]  # fmt: skip
    weights = {name: torch.stack([each[name] for each in made]) for name in layer.weights}
    router = {name: tensor[list(copies)].clone() for name, tensor in layer.router.items()}
    router["weight"] += 0.02 * torch.randn(router["weight"].shape, generator=generator)
    return NewLayer(weights, router)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A family's name -> a checkpoint with eight experts that are copies of four, and its statistics."""
    made = {}

    def make(family):
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            if family == "gpt_oss":
                save_tiny_family(place / "small", tiny_family(family, experts=4))
                tiny_tokenizer().save_pretrained(place / "small")
            else:
                groups = {"n_group": 2, "topk_group": 1} if family == "deepseek_v3" else {}
                save_tiny(place / "small", family, experts=4, k=2, layers=2, **groups)
            copies = COPIES.get(family, USUAL)
            about = Method("upcycle", "exact", "Each expert twice.")
            rewrite(open_checkpoint(place / "small"), place / "big", lambda layer: doubled(layer, copies), about=about)
            made[family] = place / "big", collect_statistics(place / "big", TEXT, sample=64).statistics
        return made[family]

    return make


def logits(path):
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits


PLAIN = (
    "import sys, torch; from transformers import AutoModelForCausalLM as A; assert 'coterie' not in sys.modules; "
    "print(A.from_pretrained(sys.argv[1], dtype=torch.float32)(torch.arange(3, 27)[None]).logits.double().sum().item())"
)


def loads_without_coterie(path):
    done = subprocess.run([sys.executable, "-c", PLAIN, str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_merged_to_the_same_function(family, twins, tmp_path):
    big, statistics = twins(family)
    made = merge(big, tmp_path / "out", 4, statistics=statistics, uniform=True)
    copies = COPIES.get(family, USUAL)
    for grouping in made.groupings.values():
        assert all(len({copies[expert] for expert in some}) == 1 for some in grouping.members)
    assert made.made.container == "alias"
    assert made.made.after.parameters < made.made.before.parameters
    assert all(about["error"] < 1e-6 < about["error_of_pruning"] for about in made.made.layers.values())
    expected = logits(big)
    torch.testing.assert_close(logits(tmp_path / "out"), expected, rtol=1e-4, atol=1e-4)
    model = coterie.load(tmp_path / "out", memory="64MiB", context=32)
    with torch.no_grad():
        found = model(torch.arange(3, 27)[None]).logits
    model.coterie.close()
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_rows_and_pruned_experts_load_without_coterie(family, twins, tmp_path):
    big, statistics = twins(family)
    merged = merge(big, tmp_path / "merged", 4, statistics=statistics, uniform=True, router="drop")
    pruned = prune(big, tmp_path / "pruned", 4, statistics=statistics, method="naee")
    for made in (merged, pruned):
        assert made.made.container == "native"
        assert made.made.difference < 1e-4
        assert all(0 < about["error"] < 2 for about in made.made.layers.values())
    if family in ("mixtral", "deepseek_v3"):
        for made in (merged, pruned):
            whole = loads_without_coterie(made.made.path)
            assert whole == pytest.approx(logits(made.made.path).double().sum().item(), rel=1e-4)
    if family == "deepseek_v3":
        assert all(sum(e < 4 for e in some) == 2 for some in pruned.kept.values())


def test_layers_that_differ_and_layers_that_stay(twins, tmp_path):
    big, statistics = twins("olmoe")
    made = merge(big, tmp_path / "out", 5, statistics=statistics, skip_layers=[0], dominant="frequency", router="drop")
    assert made.made.container == "coterie"
    assert made.made.after.experts == (8, 5)
    assert not made.made.layers[0]
    made = prune(big, tmp_path / "adaptive", 5, statistics=statistics, method="naee", uniform=False)
    assert sum(made.made.after.experts) == 10
    assert min(made.made.after.experts) >= 2
    assert torch.isfinite(logits(tmp_path / "adaptive")).all()


@pytest.mark.parametrize("method", ["average", "hc-smoe", "ream", "auto"])
def test_other_methods(method, twins, tmp_path):
    big, statistics = twins("olmoe")
    sheets = []
    made = merge(big, tmp_path / "out", 4, statistics=statistics, method=method, texts=TEXT, show=sheets.append)
    shown = "\n".join(sheet.plain() for sheet in sheets)
    assert "Redundancy of big" in shown
    assert "perplexity" in shown
    assert made.as_record()["method"]["options"]["method"] in ("m-smoe", "average", "hc-smoe", "ream")
    json.dumps(made.as_record())
    if method == "auto":
        assert "pruning by REAP" in shown
        assert all(about["error"] < 1e-6 for about in made.made.layers.values())
    page = tmp_path / "report.html"
    made.write_page(page)
    assert "How alike experts are" in page.read_text()


def test_experts_are_kept_bit_for_bit(twins, tmp_path):
    big, statistics = twins("olmoe")
    made = prune(big, tmp_path / "out", 4, statistics=statistics, texts=TEXT)
    before, after = open_checkpoint(big), open_checkpoint(tmp_path / "out")
    from coterie.surgery import read_layer

    for old, new in zip(before.sites, after.sites, strict=True):
        keep = list(made.kept[old.layer])
        was, now = read_layer(before, old), read_layer(after, new)
        assert all(torch.equal(was.weights[name][keep], now.weights[name]) for name in was.weights)
        assert torch.equal(was.router["weight"][keep], now.router["weight"])
    made.write_page(tmp_path / "report.html")
    assert "Experts that stay" in (tmp_path / "report.html").read_text()
    assert made.as_record()["perplexity"]["after"] > 0


def test_unfinished_work_goes_on(twins, tmp_path):
    big, statistics = twins("olmoe")
    told = []

    def interrupt(text):
        told.append(text)
        if text.startswith("Checking"):
            raise KeyboardInterrupt

    options = {"statistics": statistics, "uniform": True}
    with pytest.raises(KeyboardInterrupt):
        merge(big, tmp_path / "out", 4, say=interrupt, **options)
    assert not (tmp_path / "out").exists()
    made = merge(big, tmp_path / "out", 4, resume=True, **options)
    assert made.made.after.experts == (4, 4)


# ---- what is refused


def refused(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_bad_targets_and_options_are_refused(twins, tmp_path):
    big, statistics = twins("olmoe")
    out = tmp_path / "out"
    given = {"statistics": statistics}
    for verb in (merge, prune):
        refused(
            OptionError,
            "8 experts in a layer, and 16 are asked for.*coterie upcycle",
            lambda v=verb: v(big, out, 16, **given),
        )
        refused(OptionError, "8 experts in a layer, and 8 are asked for", lambda v=verb: v(big, out, 8, **given))
        refused(OptionError, "judged by: --text", lambda v=verb: v(big, out, 4))
        refused(OptionError, "no container 'tin'", lambda v=verb: v(big, out, 4, container="tin", **given))
        refused(OptionError, "Layer 7 has no experts", lambda v=verb: v(big, out, 4, skip_layers=[7], **given))
        refused(OptionError, "All layers", lambda v=verb: v(big, out, 4, skip_layers=[0, 1], **given))
        refused(OptionError, "method is one of", lambda v=verb: v(big, out, 4, method="magic", **given))
        refused(OptionError, "exists already", lambda v=verb: v(big, tmp_path, 4, **given))
        refused(
            PromptError, "tokens; the statistics asked need", lambda v=verb: v(big, out, 4, texts={"t": "short text"})
        )
    refused(OptionError, "4 to 16 do, with 2 in each", lambda: prune(big, out, 1, **given))
    refused(OptionError, "4 to 16 do, with 2 in each", lambda: merge(big, out, 1, router="drop", **given))
    refused(OptionError, "native container cannot hold", lambda: merge(big, out, 4, container="native", **given))
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_statistics_of_another_model_are_refused(twins, tmp_path):
    big, _ = twins("olmoe")
    _, other = twins("mixtral")
    refused(CheckpointError, "another model", lambda: merge(big, tmp_path / "out", 4, statistics=other))
    (tmp_path / "stats").write_bytes(b"nothing")
    refused(CheckpointError, "stats", lambda: merge(big, tmp_path / "out", 4, statistics=tmp_path / "stats"))


def test_what_was_merged_is_not_merged_again(twins, tmp_path):
    big, statistics = twins("olmoe")
    merge(big, tmp_path / "once", 4, statistics=statistics)
    refused(OptionError, "merged already", lambda: merge(tmp_path / "once", tmp_path / "twice", 2, texts=TEXT))


def test_routers_that_cannot_lose_rows(tmp_path):
    model = tiny_family("phimoe")
    path = save_tiny_family(tmp_path / "phi", model)
    tiny_tokenizer().save_pretrained(path)
    statistics = collect_statistics(path, TEXT, sample=32).statistics
    refused(
        UnsupportedError,
        "try subsets.*--method reap",
        lambda: prune(path, tmp_path / "o", 4, statistics=statistics, method="naee"),
    )
    refused(
        UnsupportedError,
        "How this model's routers decide",
        lambda: merge(path, tmp_path / "o", 4, statistics=statistics, method="auto"),
    )
    found = calibrated(path, tmp_path / "o", statistics=statistics)
    assert found.limits.refusal == ""
    made = prune(path, tmp_path / "o", 4, statistics=statistics)
    assert all("error" not in about for about in made.made.layers.values())


def test_experts_of_different_shapes_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "m", "mixtral", experts=4)
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".experts.1." in name)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    refused(CheckpointError, r"experts\.1", lambda: merge(path, tmp_path / "out", 2, texts=TEXT))


def test_a_checkpoint_with_nan_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "m", "mixtral", experts=4)
    statistics = collect_statistics(path, TEXT, sample=32).statistics
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".experts.1." in name)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN|another model"):
        merge(path, tmp_path / "out", 2, statistics=statistics)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


@pytest.mark.filterwarnings("ignore")
def test_routes_to_no_expert_and_layouts_of_their_own(tmp_path):
    for family in ("zaya", "dbrx"):
        save_tiny_family(tmp_path / family, tiny_family(family))
        tiny_tokenizer().save_pretrained(tmp_path / family)
    made = merge(tmp_path / "zaya", tmp_path / "z", 4, texts=TEXT, uniform=True)
    assert made.made.container == "alias"
    assert made.made.difference < 1e-4
    refused(UnsupportedError, "--router map", lambda: prune(tmp_path / "zaya", tmp_path / "o", 4, texts=TEXT))
    refused(
        UnsupportedError, "--router drop --uniform", lambda: merge(tmp_path / "dbrx", tmp_path / "o", 4, texts=TEXT)
    )
    made = merge(tmp_path / "dbrx", tmp_path / "d", 4, texts=TEXT, uniform=True, router="drop")
    assert made.made.container == "native"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "method"), [("gpt_oss", "mxfp4"), ("deepseek_v3", "fp8")])
def test_quantised_checkpoints_come_out_in_floats(family, method, tmp_path):
    from coterie.testing.quantised import save_tiny_quantised

    save_tiny_quantised(tmp_path / "q", family, method)
    made = merge(tmp_path / "q", tmp_path / "out", 4, texts=TEXT, uniform=True)
    assert made.made.difference < 1e-4
    assert open_checkpoint(tmp_path / "out").quantization is None
