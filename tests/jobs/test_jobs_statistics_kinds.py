"""Statistics of models that surgery made: merged behind a map, factors, integers."""

from __future__ import annotations

import pytest
import torch

from coterie.jobs import collect_statistics, compress, load, merge, quantize
from coterie.models import open_checkpoint
from coterie.models.collect import collect
from coterie.models.language import load_host
from coterie.models.resident import resident_experts
from coterie.surgery.redundancy import layer_redundancy
from coterie.testing.checkpoints import save_tiny

TEXT = {"made up": "\n".join(f"On day {day} the otter swam to weir {day * 7 % 11}." for day in range(20))}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("kinds") / "tiny", "olmoe", experts=6, k=2)


@pytest.fixture(scope="module", params=["merged", "factors", "integers", "merged factors"])
def made(request, tiny, tmp_path_factory):
    """(name, directory) of a model that surgery made."""
    out = tmp_path_factory.mktemp("made") / "out"
    if request.param == "merged":
        merge(tiny, out, 4, texts=TEXT)
    elif request.param == "integers":
        quantize(tiny, out, "mixed", average_bits=6.0)
    else:
        compress(tiny, out, rank=3, keep=0.2, texts=TEXT, merge_first=4 if request.param == "merged factors" else None)
    return request.param, out


@torch.no_grad()
def test_one_slot_gives_the_bits_of_everything_resident(made):
    name, path = made
    checkpoint, ids = open_checkpoint(path), torch.randint(2, 300, (2, 20))
    found, logits = [], []
    host = load(path, context=20, batch=2, prefill=20, slots=1, all_logits=True, compile=False)
    for model in (host, load_host(checkpoint, resident_experts)):
        plain = model(input_ids=ids).logits
        with collect(model, sample=8) as collection:
            logits.append(model(input_ids=ids).logits)
            found.append(collection.statistics())
        assert torch.equal(logits[-1], plain)  # watching changes no bit
    host.coterie.close()
    assert torch.equal(*logits)
    for one, other in zip(*(each.values() for each in found), strict=True):
        for field in ("usage", "gate_mass", "output_norm", "reap", "channel", "sample_output", "sample_channel"):
            assert torch.equal(getattr(one, field), getattr(other, field)), (name, field)
        assert one.usage.sum() > 0


def test_a_file_of_them_says_what_the_experts_do(made, tmp_path):
    _, path = made
    checkpoint = open_checkpoint(path)
    statistics = collect_statistics(path, TEXT, tmp_path / "stats", sample=8).statistics
    statistics.check(checkpoint)
    for site in checkpoint.sites:
        told = statistics[site.name]
        assert told.num_experts == site.num_experts
        assert told.experts_of == site.experts_of
        if site.kind is not None:
            parts = resident_experts(site).weights_of(0)
            expected = site.kind.forward(told.inputs, parts).float().mean(0)
            torch.testing.assert_close(told.sample_output[0], expected, rtol=1e-4, atol=1e-6)
        # with several routes to an expert the router's columns are no experts
        assert (layer_redundancy(told).router is None) == (site.experts_of is not None)


def test_at_full_rank_they_are_those_of_the_model_before(tiny, tmp_path):
    compress(tiny, tmp_path / "whole", rank=10**6)
    before = collect_statistics(tiny, TEXT, sample=8).statistics
    after = collect_statistics(tmp_path / "whole", TEXT, sample=8).statistics
    for name, site in before.sites.items():
        assert torch.equal(site.usage, after[name].usage)
        torch.testing.assert_close(site.channel, after[name].channel, rtol=1e-4, atol=1e-6)
