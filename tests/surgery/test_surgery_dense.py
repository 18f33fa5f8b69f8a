"""Dense models opened, and written as mixtures of native families."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import CheckpointError, CoterieError, OptionError, UnsupportedError
from coterie.models import open_checkpoint
from coterie.models.compat import quiet
from coterie.surgery import Method, NewMixture, from_dense, open_dense, read_ffn
from coterie.surgery.from_dense import mixture_host
from coterie.surgery.verify import logits_of, probe_ids
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer

ABOUT = Method("split", "exact", "Channels were dealt out.")
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 512, "initializer_range": 0.2, "rms_norm_eps": 1e-4,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "bos_token_id": 0, "eos_token_id": 0}


def saved(path, kind, **options):
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = GPT2 if kind == "gpt2" else SIZES
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**fields, **options})).eval()
    with quiet():
        model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    dense = open_dense(path)
    return dense, logits_of(model, probe_ids(dense, 16))


def dealt(experts, shared=0):
    """All channels, dealt out; the output of E experts of equal weight is that of the dense layer."""

    def edit(layer):
        gate, up, down = (layer.weights[name] for name in ("gate_proj", "up_proj", "down_proj"))
        own = {
            "gate_proj": gate[shared:].view(experts, -1, gate.shape[1]),
            "up_proj": up[shared:].view(experts, -1, up.shape[1]),
            "down_proj": down[:, shared:].reshape(len(down), experts, -1).transpose(0, 1) * experts,
        }
        beside = {"gate_proj": gate[:shared], "up_proj": up[:shared], "down_proj": down[:, :shared]}
        router = torch.zeros(experts, up.shape[1])
        return NewMixture(own, router, beside if shared else None, {"channels": own["up_proj"].shape[1]})

    return edit


@pytest.mark.parametrize(
    ("kind", "options", "shared", "family"),
    [
        ("llama", {}, 0, "mixtral"),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1234.5}}, 0,
         "mixtral"),
        ("llama", {}, 32, "qwen2_moe"),
        ("mistral", {"sliding_window": 8}, 0, "mixtral"),
        ("mistral", {"sliding_window": 8}, 32, "qwen2_moe"),
        ("qwen2", {}, 0, "qwen2_moe"),
        ("qwen2", {"tie_word_embeddings": True}, 32, "qwen2_moe"),
        ("qwen3", {"head_dim": 16}, 0, "qwen3_moe"),
    ],
)  # fmt: skip
def test_all_experts_on_are_the_dense_model(tmp_path, kind, options, shared, family):
    from transformers import AutoModelForCausalLM

    dense, expected = saved(tmp_path / "a", kind, **options)
    made = from_dense(dense, tmp_path / "b", dealt(4, shared), top_k=4, about=ABOUT)
    written = open_checkpoint(made.path)
    assert (written.config.model_type, made.container, made.layers[1]) == (
        family,
        "native",
        {"channels": 16 - shared // 4},
    )
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits_of(model, probe_ids(dense, 16)), expected, rtol=1e-4, atol=2e-5)
    assert made.difference < 1e-4
    assert (made.path / "tokenizer.json").exists()


def test_fewer_experts_are_the_mixture_in_memory(tmp_path):
    dense, expected = saved(tmp_path / "a", "llama")
    made = from_dense(dense, tmp_path / "b", dealt(8), top_k=2, about=ABOUT, max_shard=20_000)
    assert made.difference < 1e-4
    assert made.after.active < made.before.active
    assert len(list(made.path.glob("*.safetensors"))) > 1
    found = logits_of(mixture_host(dense, dealt(8), 2), probe_ids(dense, 16))
    assert (found - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        ("llama", {"mlp_bias": True}, {"gate_proj", "up_proj", "down_proj"}),
        ("phi3", {}, {"gate_up_proj", "down_proj"}),
        ("gemma3_text", {"hidden_activation": "gelu_pytorch_tanh"}, {"gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {}, {"up_proj", "down_proj", "up_proj_bias", "down_proj_bias"}),
    ],
)
def test_feed_forwards_are_found_whatever_they_are_called(tmp_path, kind, options, names):
    dense, expected = saved(tmp_path / "a", kind, **options)
    assert {name for name in dense.ffns[0].names if options or "bias" not in name or kind == "gpt2"} >= names
    layer = read_ffn(dense, dense.ffns[0])
    assert layer.weights["up_proj"].shape == (64, 32)
    assert layer.weights["down_proj"].shape == (32, 64)
    found = logits_of(mixture_host(dense, None, 0), probe_ids(dense, 16))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("llama", {"mlp_bias": True}, "feed-forwards have biases"),
        ("llama", {"attention_bias": True}, "attention has a bias on the way out"),
        ("gemma3_text", {}, "its attention or its shared expert has no place there"),
        ("gpt2", {}, "its attention or its shared expert has no place there"),
        ("qwen3", {}, "family 'qwen3' with a shared expert cannot be written as qwen3_moe"),
    ],
)
def test_what_no_native_family_has_stays_what_it_is(tmp_path, kind, options, words):
    from coterie.surgery.mixture import mixture_family

    dense, _ = saved(tmp_path / "a", kind, **options)
    shared = kind == "qwen3"
    assert mixture_family(dense, shared=shared).name == "coterie"
    with pytest.raises(OptionError, match=words):
        mixture_family(dense, "qwen3_moe" if shared else "mixtral", shared=shared)


def test_bad_input(tmp_path):
    dense, _ = saved(tmp_path / "a", "llama")
    cases = [
        ({"family": "mixtrall"}, "There is no family"), ({"family": "qwen3_moe"}, "cannot be written as qwen3_moe"),
        ({"top_k": 5}, "1 up to all of the 4 experts"),
    ]  # fmt: skip
    for options, words in cases:
        with pytest.raises(OptionError, match=words):
            from_dense(dense, tmp_path / "b", dealt(4), **{"top_k": 2, "about": ABOUT, **options})
    with pytest.raises(OptionError, match="has one number for all layers"):
        from_dense(dense, tmp_path / "b", lambda layer: dealt(4 if layer.ffn.layer else 2)(layer), top_k=2, about=ABOUT)
    with pytest.raises(UnsupportedError, match="has experts already"):
        open_dense(save_tiny(tmp_path / "moe", "mixtral"))
    with pytest.raises(CheckpointError, match="There is no directory"):
        open_dense(tmp_path / "nowhere")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CoterieError, match="truncated"):
        open_dense(tmp_path / "a")
    assert not list(tmp_path.glob("b*"))


def test_what_transformers_does_not_load_is_said_in_a_sentence(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def from_pretrained(path, **options):
            raise RuntimeError("size mismatch for layers.0: [3] is not [4].\nAnd more that nobody reads.")

    dense, _ = saved(tmp_path / "a", "llama")
    monkeypatch.setattr("coterie.surgery.verify.auto_class", lambda config: Broken)
    with pytest.raises(CheckpointError, match=r"not load what was written: size mismatch .*\[4\]\. Nothing was put"):
        from_dense(dense, tmp_path / "b", dealt(4), top_k=4, about=ABOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
