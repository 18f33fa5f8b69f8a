"""The plain transformers model around the peers' experts: dense weights in anonymous memory, experts nowhere yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from offloading.checkpoint import shard_files
from offloading.cold import drop


def plain_host(checkpoint: Path) -> Any:
    """An `OlmoeForCausalLM` in bf16 whose dense weights are copies (no file stays open) and whose experts are meta."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # buffers that are not saved have to be computed again off meta
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    _load_dense(model, checkpoint)
    return model.eval()


def expert_modules(model: Any) -> list[Any]:
    return [layer.mlp.experts for layer in model.model.layers]


def _load_dense(model: nn.Module, checkpoint: Path) -> None:
    state: dict[str, Tensor] = {}
    for shard in shard_files(checkpoint):
        with safe_open(shard, framework="pt") as file:
            names = [name for name in file.keys() if ".experts." not in name]  # noqa: SIM118 (no mapping)
            state |= {name: file.get_tensor(name).clone() for name in names}
        drop(shard)
    missing = model.load_state_dict(state, strict=False, assign=True)
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert all(".experts." in name for name in missing.missing_keys), missing.missing_keys
