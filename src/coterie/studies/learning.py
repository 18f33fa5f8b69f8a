"""The small byte models of the studies, and how they are trained. Everything of an arm's start depends on the seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coterie.models.routed import RouterSpec, route
from coterie.studies.study import Bench
from coterie.training import Objective, Options, Windows, fit
from coterie.training.step_loss import routers_of

BLOCK, BATCH = 64, 16  # tokens of a window, windows of a step: 1024 tokens
EXPERTS, CHOICES, WIDTH = 8, 2, 64
RATE = 2e-3


def tiny_moe(seed: int, layers: int, router: str, options: Mapping[str, Any]) -> Any:
    """A pre-norm mixture over bytes: width 64, 4 heads, 8 experts of 64 in every layer, routed by a preset.

    Embeddings, attention and experts depend on ``seed`` and ``layers`` alone, so they are the same in every arm; so
    does the gate of the router where it has one.
    """
    model = plain_moe(seed, layers)
    routed(model, seed, router, options)
    return model.train()


def routed(model: Any, seed: int, router: str, options: Mapping[str, Any]) -> Any:
    """Give ``model`` the routers of a preset, in place; returns what `coterie.models.routed.route` does."""
    torch.manual_seed(seed + 1)  # of what the router does not take from the gate
    return route(model, RouterSpec(router, dict(options)))


def routers_in(model: Any) -> list[Any]:
    """Our routers in ``model``, in the order of the layers."""
    return [router for _, router in routers_of(model)]


def plain_moe(seed: int, layers: int) -> Any:
    """The same before it is given a router of ours: transformers' Qwen3-MoE."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=WIDTH, moe_intermediate_size=WIDTH,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        num_experts=EXPERTS, num_experts_per_tok=CHOICES, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[], max_position_embeddings=BLOCK, output_router_logits=False, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def windows_of(data: bytes, count: int, seed: int) -> Windows:
    """``count`` windows of 64 bytes in an order that depends on the seed alone."""
    ids = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).long()
    return Windows({"text": ids}, BLOCK, count, seed=seed)


def train(
    bench: Bench, model: Any, data: Dataset[dict[str, Tensor]], objective: Objective, *, rate: float = RATE,
    look: Callable[[int, Any], None] | None = None, **more: Any,
) -> None:  # fmt: skip
    """``bench.steps`` updates of AdamW with half a cosine and no warm-up. Mutates ``model``; blocks.

    Args:
        bench: the run.
        model: what learns.
        data: its windows, steps times 16.
        objective: losses beside the next byte.
        rate: at the start.
        look: called as (step, model) at step 0 and about twenty times on the way.
        more: further arguments of `coterie.training.fit`, such as ``schedules``.

    Raises:
        TrainingError: the loss is not finite.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options = Options(
        steps=bench.steps, batch=BATCH, rate=rate, warmup=0, decay=1.0, decay_shape="cosine", weight_decay=0.01,
        betas=(0.9, 0.999), clip=1.0, seed=bench.seed, save_every=0, log_every=max(1, bench.steps // 20),
    )  # fmt: skip
    callbacks = [] if look is None else [_now_and_then(look, bench.steps)]
    fit(model, data, options, bench.place / "training", objective=objective, progress=bench.progress,
        callbacks=callbacks, **more)  # fmt: skip
    model.eval()


def _now_and_then(look: Callable[[int, Any], None], steps: int) -> Any:
    from transformers import TrainerCallback

    every = max(1, steps // 20)

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            look(0, model)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step % every == 0 or state.global_step == steps:
                look(state.global_step, model)

    return Look()
