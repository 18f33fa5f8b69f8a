"""A small byte mixture, and the dense model that has the same everything else: same sizes, same start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from coterie.models.routed import RouterSpec, route
from coterie.ops.partition import even_channels, split_dense
from coterie.studies.learning import BLOCK, WIDTH

_FEED_FORWARD = ".mlp."
_MATRICES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model over 256 bytes: width 64, 4 heads, pre-norm, gated feed-forwards without biases.

    Attributes:
        layers: L.
        dense: numbers of the layers that have one feed-forward in the mixture too.
        num_experts: E.
        inner: F of an expert.
        dense_inner: of a dense feed-forward.
    """

    layers: int
    dense: tuple[int, ...]
    num_experts: int
    inner: int
    dense_inner: int


def mixture(shape: Shape, seed: int, router: str, options: Mapping[str, Any]) -> Any:
    """The mixture, routed by a preset, in train mode. Everything but the router depends on shape and seed alone."""
    model = _unrouted(shape, seed)
    torch.manual_seed(seed + 1)  # of what the router does not take from the gate
    route(model, RouterSpec(router, dict(options)))
    return model.train()


def dense_twin(shape: Shape, seed: int) -> Any:
    """One feed-forward in every layer; embeddings, attention and dense layers start as those of `mixture`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed + 2)
    model = Qwen3ForCausalLM(Qwen3Config(**_sizes(shape)))
    _take(model, _unrouted(shape, seed))
    return model.train()


def split_twin(shape: Shape, dense: Any) -> Any:
    """A dense model cut into experts, without any training: all of them together are the dense model.

    Experts weigh the same, whichever are on, and the sum of the weights is their number; a fixed random router
    chooses. Copies the weights; in eval mode.
    """
    model = _unrouted(shape, 0)
    _take(model, dense)
    state = dense.state_dict()
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            weights = {name: state[f"model.layers.{number}.mlp.{name}.weight"] for name in _MATRICES}
            parts = split_dense(weights, even_channels(shape.dense_inner, shape.num_experts), fused=True)
            for name, stack in parts.experts.items():
                getattr(layer.mlp.experts, name).copy_(stack)
    options = {"k": shape.num_experts, "uniform": True, "output_scale": float(shape.num_experts)}
    route(model, RouterSpec("smoe_dropout", options))
    return model.eval()


def _unrouted(shape: Shape, seed: int) -> Any:
    """transformers' Qwen3-MoE, whose gate nobody keeps unless the router is a learned one."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        **_sizes(shape), moe_intermediate_size=shape.inner, num_experts=shape.num_experts, num_experts_per_tok=1,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=list(shape.dense), output_router_logits=False,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def _sizes(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": shape.dense_inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "max_position_embeddings": BLOCK, "use_cache": False, "bos_token_id": None, "eos_token_id": None,
        "pad_token_id": None,
    }  # fmt: skip


def _take(model: Any, other: Any) -> None:
    """Copy from ``other`` what both have alike: all but feed-forwards that one of them has cut into experts."""
    mine, theirs = model.state_dict(), other.state_dict()
    shared = {name: theirs[name] for name in mine if name in theirs}
    missing = [name for name in mine if name not in shared and _FEED_FORWARD not in name]
    assert not missing, missing
    model.load_state_dict(shared, strict=False)
