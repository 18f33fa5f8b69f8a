"""Channels of dense models: counted as a plain sum counts them, and worth what the loss says they are worth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.models.channel_statistics import pack_bits, unpack_bits
from coterie.models.feed_forwards import collect_channels, find_ffns
from coterie.training.saliency import add_saliency

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
# family -> its own names of sizes, block of the first layer, projections up and down, F
KINDS = {
    "llama": ({}, "model.layers.0.mlp", ("gate_proj", "up_proj"), "down_proj", 48),
    "qwen3": ({"head_dim": 8}, "model.layers.0.mlp", ("gate_proj", "up_proj"), "down_proj", 48),
    "gemma2": ({"head_dim": 8}, "model.layers.0.mlp", ("gate_proj", "up_proj"), "down_proj", 48),
    "phi3": ({}, "model.layers.0.mlp", ("gate_up_proj",), "down_proj", 48),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}, "transformer.h.0.mlp", ("c_fc",), "c_proj", 48),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, "model.decoder.layers.0", ("fc1",), "fc2", 48),
    "gpt_neox": ({}, "gpt_neox.layers.0.mlp", ("dense_h_to_4h",), "dense_4h_to_h", 48),
    "bloom": ({"n_head": 4, "n_layer": 2}, "transformer.h.0.mlp", ("dense_h_to_4h",), "dense_4h_to_h", 128),
}


def tiny(kind="llama"):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind][0]})).eval()


def ids_of(rows=2, length=20, seed=0):
    return torch.randint(2, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_feed_forwards_are_found_by_shape_and_their_channels_counted(kind):
    _, name, ups, down, inner = KINDS[kind]
    model, heard, read = tiny(kind), [], []
    sites = find_ffns(model)
    assert len(sites) == 2
    assert (sites[0].name, sites[0].ups, sites[0].down, sites[0].inner) == (name, ups, down, inner)
    assert [site.layer for site in sites] == [0, 1]
    block = model.get_submodule(name)
    block.get_submodule(down).register_forward_pre_hook(lambda m, args: heard.append(args[0].reshape(-1, inner)))
    block.get_submodule(ups[0]).register_forward_pre_hook(lambda m, args: read.append(args[0].reshape(-1, 32)))
    with collect_channels(model, top_fraction=0.25, sample=100) as collection:
        for seed in range(2):
            model(input_ids=ids_of(seed=seed), use_cache=False)
        ffn = collection.statistics()[name]
    activations, inputs = torch.cat(heard), torch.cat(read)
    assert ffn.tokens == 80
    torch.testing.assert_close(ffn.channel, activations.abs().mean(0), rtol=1e-4, atol=1e-7)
    count = inner // 4
    active = torch.zeros(80, inner, dtype=torch.bool)
    active.scatter_(1, activations.abs().topk(count, dim=1).indices, True)
    torch.testing.assert_close(ffn.top, active.float().mean(0))
    assert torch.equal(ffn.inputs, inputs)
    assert torch.equal(ffn.activity, active)
    assert torch.equal(ffn.coactivation(), active.float().T @ active.float())
    some = torch.tensor([3, 1, 7])
    assert torch.equal(ffn.coactivation(some), ffn.coactivation()[some][:, some])


@torch.no_grad()
def test_domains_and_padding():
    model = tiny()
    ids, mask = ids_of(), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :8] = 0
    with collect_channels(model, sample=5) as collection:
        collection.domain = "code"
        model(input_ids=ids, attention_mask=mask)
        collection.domain = "prose"
        model(input_ids=ids_of(seed=1))
        ffns = collection.statistics()
    for ffn in ffns.values():
        code, prose = ffn.domains["code"], ffn.domains["prose"]
        assert (ffn.tokens, code.tokens, prose.tokens) == (72, 32, 40)
        torch.testing.assert_close(ffn.channel, (32 * code.channel + 40 * prose.channel) / 72)
        assert ffn.inputs.shape == (5, 32)
        assert code.gradient is None
    with collect_channels(model, sample=5) as collection:
        model(input_ids=ids[:1])
        model(input_ids=ids[1:, 8:])
        plain = collection.statistics()
    for name, ffn in ffns.items():
        torch.testing.assert_close(ffn.domains["code"].channel, plain[name].channel, rtol=1e-3, atol=1e-6)


def test_saliency_is_what_the_loss_changes_by():
    """Scaling a channel by 1 + e changes the loss by e times the sum of activation x gradient, to first order."""
    model = tiny().double()
    ids = ids_of(rows=1, length=6)
    with collect_channels(model) as collection:
        loss = add_saliency(model, collection, ids)
        ffns = collection.statistics()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert loss == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)
    name, ffn = next(iter(ffns.items()))
    down = model.get_submodule(name).down_proj
    exact = []
    with torch.no_grad():
        for token in range(6):
            for channel in (0, 5):
                exact.append(bent(model, down, ids, token, channel))
    exact = torch.tensor(exact).view(6, 2).abs().mean(0)
    torch.testing.assert_close(ffn.gradient[[0, 5]].double(), exact.double(), rtol=2e-2, atol=1e-6)


def bent(model, down, ids, token, channel, step=1e-3):
    """Slope of the summed loss in the size of one activation of one token."""
    losses = []
    for scale in (1 + step, 1 - step):

        def change(module, args, scale=scale):
            hidden = args[0].clone()
            hidden[0, token, channel] *= scale
            return (hidden,)

        handle = down.register_forward_pre_hook(change)
        logits = model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        handle.remove()
    return float(losses[0] - losses[1]) / (2 * step)


def test_saliency_of_batches_is_that_of_single_sequences():
    model, found = tiny(), []
    for parts in ([ids_of()], [ids_of()[:1], ids_of()[1:]]):
        with collect_channels(model) as collection:
            for ids in parts:
                add_saliency(model, collection, ids)
            found.append(collection.statistics())
    for name, ffn in found[0].items():
        torch.testing.assert_close(ffn.gradient, found[1][name].gradient, rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(ffn.channel, found[1][name].channel, rtol=1e-4, atol=1e-7)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.randoms(use_true_random=False))
def test_bits_come_back(inner, rows, lots):
    table = torch.tensor([[lots.random() < 0.5 for _ in range(inner)] for _ in range(rows)]).view(rows, inner).bool()
    packed = pack_bits(table)
    assert packed.shape == (rows, -(-inner // 8))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, inner), table)


def test_what_cannot_be_collected_is_said():
    from transformers import MambaConfig, MambaForCausalLM

    model = tiny()
    for wrong in ({"sample": 0}, {"top_fraction": 0.0}, {"top_fraction": 1.5}):
        with pytest.raises(OptionError, match="sample must be 1 or more"), collect_channels(model, **wrong):
            pass
    with pytest.raises(OptionError, match="Nothing was heard"), collect_channels(model) as collection:
        collection.statistics()
    mamba = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(UnsupportedError, match="no feed-forward"), collect_channels(mamba):
        pass


@torch.no_grad()
def test_a_dense_model_that_computes_nan_is_refused():
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with collect_channels(model) as collection:
        model(input_ids=ids_of())
    with pytest.raises(CheckpointError, match=r"not finite in model\.layers\.1\.mlp"):
        collection.statistics()
