"""Models of milliseconds for the tests of training, routed by any preset."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from coterie.models.routed import RouterSpec, route
from coterie.training import Options, Windows

VOCABULARY, LENGTH = 64, 16


def dense_model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )
    ).train()  # fmt: skip


def routed_model(router="top_k", experts=4, k=2, **options):
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=experts, num_experts_per_tok=k,
            norm_topk_prob=True, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )
    ).train()  # fmt: skip
    torch.manual_seed(1)
    route(model, RouterSpec(router, options), keep_gate=False)
    return model


def options_for(steps=4, **others):
    return Options(steps, **({"batch": 2, "rate": 1e-2, "warmup": 0, "save_every": 0, "log_every": 1} | others))


def windows_for(options):
    ids = torch.arange(4000) * 7 % (VOCABULARY - 2) + 2
    return Windows({"only": ids}, LENGTH, options.steps * options.batch * options.accumulate)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
