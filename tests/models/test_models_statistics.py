"""Statistics of experts are what a plain loop over tokens counts, whatever the family, the padding and the store."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.experts import FFN, Aliased, FFNShape, expert_forward
from coterie.jobs.running.load import load
from coterie.models import attach, experts_from, find_sites, load_host, open_checkpoint, resident_experts
from coterie.models.collect import collect
from coterie.models.compat import text_inputs
from coterie.models.statistics import SiteStatistics
from coterie.testing.checkpoints import tiny_model
from coterie.testing.families import save_tiny_family, tiny_family

# a layout of each kind: fused, grouped and sigmoid, transposed with biases, scaled inputs, dropped by capacity,
# identities beside the experts, no gate
FAMILIES = (
    "mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "switch_transformers", "longcat_flash",
    "nemotron_h",
)  # fmt: skip
FIELDS = (
    "usage", "gate_mass", "output_norm", "reap", "input_mean", "channel", "inputs", "sample_output", "sample_channel",
    "logit_gram", "logit_mean",
)  # fmt: skip


class Naive:
    """What `collect` counts, counted one assignment after another from what the experts are told."""

    def __init__(self, model, checkpoint):
        self.calls, self.logits = {}, {}
        self.sites = {site.name: site for site in find_sites(model)}
        self.experts = {site.name: resident_experts(site) for site in checkpoint.sites}
        for name, site in self.sites.items():
            site.experts.register_forward_pre_hook(self._told(name), with_kwargs=True)
            site.gate.register_forward_hook(self._decided(name))

    def _told(self, name):
        def listen(module, args, kwargs):
            self.calls.setdefault(name, []).append(self.sites[name].sent(args, kwargs))

        return listen

    def _decided(self, name):
        def listen(module, args, output):
            logits = self.sites[name].logits(output)
            self.logits.setdefault(name, []).append(logits.reshape(-1, logits.shape[-1]))

        return listen

    @torch.no_grad()
    def site(self, name, keep):
        """usage, gate_mass, output_norm, reap, input_mean, channel over the items that ``keep`` [T]."""
        ffn = self.experts[name]
        shape, experts = ffn.shape, ffn.num_experts
        usage, gate, norm, reap = (torch.zeros(experts, dtype=torch.float64) for _ in range(4))
        inputs = torch.zeros(experts, shape.width, dtype=torch.float64)
        channel = torch.zeros(experts, shape.inner, dtype=torch.float64)
        for sent in self.calls[name]:
            kept = keep.repeat(sent.copies)
            for row, indices, weights, real in zip(sent.rows, sent.indices, sent.weights, kept, strict=True):
                for expert, weight in zip(indices.tolist(), weights.tolist(), strict=True):
                    if expert >= experts or not real:
                        continue
                    hidden = []
                    made = expert_forward(row[None], ffn.weights_of(expert), shape, watch=hidden.append)[0].double()
                    usage[expert] += 1
                    gate[expert] += weight
                    norm[expert] += made.norm()
                    reap[expert] += weight * made.norm()
                    inputs[expert] += row.double()
                    channel[expert] += hidden[0][0].double().abs()
        count = usage.clamp(min=1)
        return usage, gate, norm / count, reap / count, inputs / count[:, None], channel / count[:, None]


def ids_of(rows=2, length=20, seed=0):
    return torch.randint(2, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def check_site(site: SiteStatistics, wanted):
    names = ("usage", "gate_mass", "output_norm", "reap", "input_mean", "channel")
    for name, expected in zip(names, wanted, strict=True):
        torch.testing.assert_close(
            getattr(site, name).double(), expected, rtol=2e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_experts_are_counted_as_a_plain_loop_counts_them(family, tmp_path):
    path = save_tiny_family(tmp_path / "model", tiny_family(family))
    checkpoint = open_checkpoint(path)
    ids = ids_of()
    model = load_host(checkpoint, resident_experts)
    naive = Naive(model, checkpoint)
    model(input_ids=ids, **text_inputs(model, ids))
    host = load(checkpoint, context=20, batch=2, prefill=20, slots=2)
    with collect(host, sample=8) as collection:
        host(input_ids=ids, **text_inputs(host, ids))
        sites = collection.statistics()
    host.coterie.close()
    assert list(sites) == [site.name for site in checkpoint.sites]
    for name, site in sites.items():
        assert site.tokens == 40
        check_site(site, naive.site(name, torch.ones(40, dtype=torch.bool)))
        logits = torch.cat(naive.logits[name]).double()
        torch.testing.assert_close(site.logit_gram, logits.T @ logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(site.logit_std, logits.std(0, correction=0).float(), rtol=1e-3, atol=1e-5)
        ffn = naive.experts[name]
        for expert in range(ffn.num_experts):
            hidden = []
            made = expert_forward(site.inputs, ffn.weights_of(expert), ffn.shape, watch=hidden.append)
            torch.testing.assert_close(site.sample_output[expert], made.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(site.sample_channel[expert], hidden[0].abs().mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_one_slot_gives_the_bits_of_everything_resident(family, dtype, tmp_path):
    path = save_tiny_family(tmp_path / "model", tiny_family(family, dtype=dtype), shards=3)
    found = []
    for slots in (1, 3, None):
        host = load(path, context=20, batch=2, prefill=20, slots=slots)
        with collect(host, sample=8) as collection:
            for seed in range(2):
                host(input_ids=ids_of(seed=seed))
            found.append(collection.statistics())
        host.coterie.close()
    resident = load_host(open_checkpoint(path), resident_experts)
    with collect(resident, sample=8) as collection:
        for seed in range(2):
            resident(input_ids=ids_of(seed=seed))
        found.append(collection.statistics())
    for other in found[1:]:
        for name, site in found[0].items():
            assert all(torch.equal(getattr(site, field), getattr(other[name], field)) for field in FIELDS)


@torch.no_grad()
def test_padding_is_left_out():
    model = tiny_model("olmoe", layers=2)
    ids = ids_of(rows=2, length=12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with collect(model, sample=64) as collection:
        model(input_ids=ids, attention_mask=mask)
        padded = collection.statistics()
    with collect(model, sample=64) as collection:
        model(input_ids=ids[:1, 5:])
        model(input_ids=ids[1:])
        plain = collection.statistics()
    for name, site in padded.items():
        assert site.tokens == 19
        assert torch.equal(site.usage, plain[name].usage)
        for field in ("gate_mass", "output_norm", "reap", "input_mean", "channel", "logit_gram"):
            torch.testing.assert_close(getattr(site, field), getattr(plain[name], field), rtol=1e-3, atol=1e-4)
        order = [sorted(rows.tolist()) for rows in (site.inputs, plain[name].inputs)]
        torch.testing.assert_close(torch.tensor(order[0]), torch.tensor(order[1]), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_domains_add_up_to_the_whole_and_the_model_is_left_as_it_was():
    model = tiny_model("mixtral")
    before, experts = model(input_ids=ids_of()).logits, [site.experts for site in find_sites(model)]
    with collect(model, sample=16) as collection:
        for number, domain in enumerate(("code", "prose", "code", "")):
            collection.domain = domain
            model(input_ids=ids_of(seed=number))
        sites = collection.statistics()
    for site in sites.values():
        assert list(site.domains) == ["code", "prose"]
        assert (site.tokens, site.domains["code"].tokens, site.domains["prose"].tokens) == (160, 80, 40)
        named = sum(use.usage for use in site.domains.values())
        assert torch.all(named <= site.usage)
        assert site.usage.sum() == 160 * 2
        assert named.sum() == 120 * 2
        torch.testing.assert_close(site.frequency.sum(), torch.tensor(1.0))
    assert [site.experts for site in find_sites(model)] == experts
    assert torch.equal(model(input_ids=ids_of()).logits, before)


@torch.no_grad()
def test_the_sample_is_the_same_tokens_in_every_layer_and_every_token_when_it_is_large():
    model = tiny_model("olmoe", layers=2)
    with collect(model, sample=64) as collection:
        model(input_ids=ids_of())
        whole = collection.statistics()
    assert [len(site.inputs) for site in whole.values()] == [40, 40]
    chosen = []
    for seed in (0, 0, 1):
        with collect(model, sample=6, seed=seed) as collection:
            for row in ids_of():
                model(input_ids=row[None])
            sites = collection.statistics()
        places = []
        for name, site in sites.items():
            distance = torch.cdist(site.inputs.double(), whole[name].inputs.double())
            assert float(distance.min(1).values.max()) < 1e-4
            places.append(distance.argmin(1).tolist())
        assert places[0] == places[1]
        assert len(set(places[0])) == 6
        chosen.append(places[0])
    assert chosen[0] == chosen[1] != chosen[2]


@torch.no_grad()
def test_twins_and_strangers():
    """Planted: expert 1 is expert 0 again, and its row of the router too."""
    model = tiny_model("mixtral", experts=4)
    for site in find_sites(model):
        for tensor in site.experts.parameters():
            tensor[1] = tensor[0]
        site.gate.weight[1] = site.gate.weight[0]
    with collect(model) as collection:
        model(input_ids=ids_of(rows=4))
        sites = collection.statistics()
    for site in sites.values():
        assert float(site.logit_similarity[0, 1]) == pytest.approx(1, abs=1e-6)
        assert float(site.centred_logit_similarity[0, 1]) == pytest.approx(1, abs=1e-6)
        assert float(site.output_similarity[0, 1]) == pytest.approx(1, abs=1e-6)
        best = site.output_similarity.clone().fill_diagonal_(-2).max(1).values
        assert site.redundancy == pytest.approx(float(best.mean()), abs=1e-6)
        torch.testing.assert_close(site.logit_similarity, site.logit_similarity.T)
        assert torch.equal(site.logit_similarity.diagonal(), torch.ones(4))


@torch.no_grad()
def test_centred_similarity_does_not_see_what_softmax_ignores():
    z = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offset = 50 * torch.randn(500, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, moved = (site_of(table.T @ table) for table in (z, z + offset))
    centred = z - z.mean(1, keepdim=True)
    wanted = torch.nn.functional.cosine_similarity(centred.T[:, None], centred.T[None], dim=-1).float()
    torch.testing.assert_close(plain.centred_logit_similarity, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved.centred_logit_similarity, wanted, rtol=1e-4, atol=1e-5)
    assert float(moved.logit_similarity.min()) > 0.99


def site_of(gram):
    none = torch.zeros(len(gram))
    wide = torch.zeros(len(gram), 3)
    return SiteStatistics("site", 0, 1, 500, none, none, none, none, wide, wide, wide, wide, wide, gram, none, 500)


def test_layers_that_say_nothing_are_met_with_words():
    site = site_of(torch.zeros(4, 4, dtype=torch.float64))
    assert torch.equal(site.logit_similarity, torch.eye(4))
    assert site.entropy == 0
    assert site.frequency.sum() == 0
    silent = SiteStatistics("site", 0, 1, 0, *[torch.zeros(1)] * 4, *[torch.zeros(1, 3)] * 5)
    assert silent.redundancy == 0
    assert silent.entropy == 1
    for ask in ("logit_similarity", "centred_logit_similarity", "logit_std"):
        with pytest.raises(UnsupportedError, match="tells no logits"):
            getattr(silent, ask)


@torch.no_grad()
def test_a_merged_layer_is_counted_by_its_experts_behind_the_routes():
    model = tiny_model("olmoe", experts=4)
    routes = (0, 1, 1, 0)

    def merged(site, old):
        few = FFN(2, experts_from(old).shape)
        for name in few.shape.weight_shapes():
            getattr(few, name).data.copy_(getattr(old, name)[:2])
        return Aliased(few, routes)

    with collect(model) as collection:
        model(input_ids=ids_of())
        before = next(iter(collection.statistics().values()))
    with attach(model, experts=merged), collect(model) as collection:
        model(input_ids=ids_of())
        site = next(iter(collection.statistics().values()))
    assert site.num_experts == 2
    assert site.experts_of == routes
    assert site.logit_gram.shape == (4, 4)
    # the first layer's inputs are the same, so its routes are: an item that has both routes of an expert uses it once
    assert site.usage.sum() <= before.usage.sum()
    torch.testing.assert_close(site.gate_mass[0], before.gate_mass[0] + before.gate_mass[3])


@pytest.mark.parametrize("broken", ["down_proj", "gate"])
@torch.no_grad()
def test_a_model_that_computes_nan_is_refused(broken):
    model = tiny_model("mixtral")
    site = find_sites(model)[1]
    tensor = site.gate.weight if broken == "gate" else site.experts.down_proj
    tensor[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite in .*layers\.1"):
        collected(model)


def collected(model):
    with collect(model) as collection:
        model(input_ids=ids_of())
        return collection.statistics()


def test_what_cannot_be_collected_is_said():
    model = tiny_model("mixtral")
    with pytest.raises(OptionError, match="1 hidden state or more, not 0"), collect(model, sample=0):
        pass
    with pytest.raises(OptionError, match="Nothing was heard"), collect(model) as collection:
        collection.statistics()
    with pytest.raises(UnsupportedError, match="no mixture-of-experts layer"), collect(dense()):
        pass


def dense():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )


def test_watching_an_expert_changes_no_bit():
    shape = FFNShape(12, 7, bias=True)
    ffn = FFN(2, shape)
    x, heard = torch.randn(5, 12), []
    with torch.no_grad():
        for expert, weights in ffn.visit([1, 0]):
            watched = expert_forward(x, weights, shape, watch=heard.append)
            assert torch.equal(watched, expert_forward(x, ffn.weights_of(expert), shape))
    assert [tuple(rows.shape) for rows in heard] == [(5, 7)] * 2
