"""Compressed and quantised checkpoints of several families: sizes as asked, served as they are, source untouched."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import coterie
from coterie.errors import CheckpointError, CoterieError, OptionError
from coterie.jobs.shrinking.compress import compress
from coterie.jobs.shrinking.quantize import quantize
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.models.checkpoint import open_checkpoint
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer
from coterie.testing.families import save_tiny_family, tiny_family
from coterie.testing.quantised import save_tiny_quantised

TEXT = {"notes": "the experts meet in the morning and the router says who speaks. " * 12}
FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")
IDS = torch.tensor([[5, 9, 17, 80, 41]])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Family -> a checkpoint, made once."""
    made = {}

    def of(family):
        if family not in made:
            path = tmp_path_factory.mktemp("source") / family
            if family == "gpt_oss":
                save_tiny_family(path, tiny_family(family, dtype=torch.bfloat16, layers=2, width=64, inner=64))
                tiny_tokenizer().save_pretrained(path)
            else:
                save_tiny(path, family, dtype=torch.bfloat16, width=64, inner=64, experts=4)
            made[family] = path
        return made[family]

    return of


@torch.no_grad()
def answers(path, memory=None):
    model = coterie.load(path, memory, all_logits=True, context=8)
    try:
        return model(input_ids=IDS).logits.float()
    finally:
        model.coterie.close()


def served_alike(path):
    """From the store, whole or with one slot per layer, and by the Auto class."""
    found = answers(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits.float(), found, atol=0.06, rtol=0)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_compressed(family, source, tmp_path):
    made = compress(source(family), tmp_path / "out", rank=8, keep=0.1, texts=TEXT)
    assert made.made.container == "coterie"
    assert made.made.difference <= 2e-3
    before, after = made.made.before, made.made.after
    assert after.nbytes < 0.75 * before.nbytes
    assert after.flops < before.flops
    served_alike(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2310.01334" in card
    assert "lossy" in card
    assert "notes" in card
    json.dumps(made.as_record())


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised(family, source, tmp_path):
    made = quantize(source(family), tmp_path / "out", "int8")
    assert made.made.difference <= 2e-3
    exact, found = answers(source(family)), served_alike(tmp_path / "out")
    assert float((found - exact).abs().max() / exact.std()) < 0.5
    before, after = (open_checkpoint(path) for path in (source(family), tmp_path / "out"))
    assert after.bytes_per_expert < 0.55 * before.bytes_per_expert
    four = quantize(source(family), tmp_path / "four", "int4", group=64)
    assert four.bits == 4.25
    assert open_checkpoint(tmp_path / "four").bytes_per_expert < 0.3 * before.bytes_per_expert
    assert "lossy" in (tmp_path / "four" / "README.md").read_text()


def test_what_others_quantised_is_made_floats_first(tmp_path):
    source = save_tiny_quantised(tmp_path / "source", "gpt_oss", "mxfp4", width=64, inner=64)
    made = quantize(source, tmp_path / "out", "int8")
    assert made.made.difference <= 2e-3
    torch.testing.assert_close(served_alike(tmp_path / "out"), answers(source), atol=0.2, rtol=0)


@pytest.mark.parametrize("size", ["60%", "80%"])
def test_as_small_as_was_asked(size, source, tmp_path):
    shown = []
    made = compress(source("olmoe"), tmp_path / "out", size=size, texts=TEXT, show=shown.append)
    wanted = float(size[:-1]) / 100 * made.made.before.nbytes
    assert 0.93 * wanted < made.made.after.nbytes <= wanted
    assert "rank gate" in shown[0].plain()


def test_a_page_with_pictures(source, tmp_path):
    for made in (
        compress(source("olmoe"), tmp_path / "a", rank=8, keep=0.1, skip_layers=[0], texts=TEXT),
        quantize(source("olmoe"), tmp_path / "b", texts=TEXT),
    ):
        made.write_page(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert page.count("<svg") == 3
        assert "against error" in page
        assert made.as_record()["perplexity"]["after"] > 0


def test_full_rank_computes_the_same(source, tmp_path):
    compress(source("mixtral"), tmp_path / "out", rank=64)
    torch.testing.assert_close(answers(tmp_path / "out"), answers(source("mixtral")), atol=0.06, rtol=0)


def test_merged_first(source, tmp_path):
    made = compress(source("mixtral"), tmp_path / "out", rank=8, keep=0.2, merge_first=2, texts=TEXT)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert sum(site.num_experts for site in checkpoint.sites) == 2 * len(checkpoint.sites)
    assert all(site.num_routes == 4 for site in checkpoint.sites)
    assert made.made.after.nbytes < 0.6 * made.made.before.nbytes
    served_alike(tmp_path / "out")
    sized = compress(source("mixtral"), tmp_path / "sized", size="50%", merge_first=2, texts=TEXT)
    assert sized.made.after.nbytes <= 0.5 * sized.made.before.nbytes


@pytest.mark.parametrize("merge_first", [None, 2])
def test_by_gradient(merge_first, source, tmp_path):
    made = compress(
        source("qwen3_moe"), tmp_path / "out", rank=8, keep=0.2, unit="neuron", score="gradient", texts=TEXT,
        merge_first=merge_first,
    )  # fmt: skip
    kept = [(about["kept"], about["experts"]) for about in made.made.layers.values()]
    assert sum(share * of for share, of in kept) / sum(of for _, of in kept) == pytest.approx(0.2, abs=0.02)
    assert len(set(kept)) > 1  # all layers compete
    served_alike(tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_layers_that_are_skipped_stay(source, tmp_path):
    made = compress(source("olmoe"), tmp_path / "out", rank=4, skip_layers=[0])
    assert made.made.layers[0] == {}
    first, second = open_checkpoint(tmp_path / "out").sites
    assert first.kind is None
    assert second.kind.name == "factored"
    quantize(source("olmoe"), tmp_path / "q", skip_layers=[1])
    served_alike(tmp_path / "q")


def test_mixed_bits_go_where_experts_are_used(source, tmp_path):
    """Statistics by hand: expert 0 does everything, so it is the one that gets eight bits."""
    statistics = collect_statistics(source("mixtral"), TEXT).statistics
    for site in statistics.sites.values():
        site.usage[:] = torch.tensor([1000.0, 0, 0, 0])
    shown = []
    made = quantize(
        source("mixtral"), tmp_path / "out", "mixed", average_bits=5.3, statistics=statistics, show=shown.append
    )
    assert made.bits <= 5.3
    assert made.choices.optimal
    for site in open_checkpoint(tmp_path / "out").sites:
        for each in site.kind.widths.values():
            assert each[0].bits == 8
            assert {width.bits for width in each[1:]} == {4}
    assert "the best there is" in shown[0].plain()
    served_alike(tmp_path / "out")


def test_mixed_is_no_worse_than_four_bits_of_as_many_bytes(source, tmp_path):
    same = quantize(source("olmoe"), tmp_path / "four", "int4", texts=TEXT)
    mixed = quantize(source("olmoe"), tmp_path / "mixed", "mixed", average_bits=same.bits, texts=TEXT)
    assert mixed.made.after.nbytes <= same.made.after.nbytes


def test_stopped_and_resumed(source, tmp_path, monkeypatch):
    """Interrupted in the second layer: what was made stays, and goes on to the same bytes."""
    whole = quantize(source("olmoe"), tmp_path / "whole")

    def stop(text):
        if text.startswith("Layer") and ": 1 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source("olmoe"), tmp_path / "out", say=stop)
    assert not (tmp_path / "out").exists()
    quantize(source("olmoe"), tmp_path / "out", resume=(tmp_path / "out.part").exists())
    assert (tmp_path / "out" / "coterie.json").read_bytes() == (whole.made.path / "coterie.json").read_bytes()


BAD = {
    "neither": ({}, "--rank 32"),
    "both": ({"rank": 3, "size": "50%"}, "one of the two"),
    "rank 0": ({"rank": 0}, "1 or more"),
    "keep": ({"rank": 3, "keep": 2}, "between 0 and 1"),
    "unit": ({"rank": 3, "unit": "head"}, "row, col, neuron"),
    "score": ({"rank": 3, "score": "magic"}, "energy, gradient"),
    "gradient without text": ({"rank": 3, "keep": 0.1, "score": "gradient"}, "--text FILE"),
    "larger": ({"size": "120%"}, "no smaller model"),
    "larger in bytes": ({"size": "1GiB"}, "no smaller model"),
    "no share": ({"size": "many%"}, "50%"),
    "no size": ({"size": "many"}, "not a size"),
    "out of reach": ({"size": "5%"}, "rank 1 everywhere"),
    "layer": ({"rank": 3, "skip_layers": [7]}, "no experts"),
    "all layers": ({"rank": 3, "skip_layers": [0, 1]}, "nothing is left"),
    "merging blindly": ({"rank": 3, "merge_first": 2}, "--text"),
    "merging up": ({"rank": 3, "merge_first": 9, "texts": TEXT}, "4 experts"),
    "an empty text": ({"rank": 3, "texts": {"nothing": " "}}, "empty"),
    "no statistics": ({"rank": 3, "statistics": "absent.safetensors"}, "absent"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_options_of_compress(name, source, tmp_path):
    options, said = BAD[name]
    with pytest.raises(CoterieError, match=said):
        compress(source("olmoe"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": "int3"}, "int8, int4, mixed"), ({"bits": "int8", "average_bits": 4}, "--bits mixed"),
        ({"bits": "mixed", "average_bits": 2}, "out of reach"), ({"bits": "mixed", "average_bits": 9}, "out of reach"),
        ({"group": 48}, "power of two"), ({"bits": "int8", "group": 32}, "--bits int4"),
    ],
)  # fmt: skip
def test_wrong_options_of_quantize(options, said, source, tmp_path):
    with pytest.raises(OptionError, match=said):
        quantize(source("olmoe"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_sources(source, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OptionError, match="exists"):
        quantize(source("olmoe"), tmp_path / "there")
    quantize(source("olmoe"), tmp_path / "q")
    with pytest.raises(OptionError, match="stored as integers already"):
        compress(tmp_path / "q", tmp_path / "again", rank=3)
    statistics = collect_statistics(source("mixtral"), TEXT).statistics
    with pytest.raises(CheckpointError, match="another model"):
        compress(source("olmoe"), tmp_path / "other", rank=3, statistics=statistics)


def test_nan_and_truncation(source, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(source("olmoe"), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if "experts.1." in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for make in (lambda: quantize(broken, tmp_path / "out"), lambda: compress(broken, tmp_path / "out", rank=3)):
        with pytest.raises(CheckpointError, match="NaN"):
            make()
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(CheckpointError):
        quantize(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
