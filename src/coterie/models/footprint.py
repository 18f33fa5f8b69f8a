"""What a model needs beside its experts: dense weights, KV cache, workspace. Computed, nothing allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import skeleton


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        dense: weights and buffers that are no experts.
        cache: keys and values of ``batch`` sequences of ``length`` tokens.
        workspace: an upper estimate of what one forward allocates and frees again.
        batch, length: what it was computed for.
    """

    dense: int
    cache: int
    workspace: int
    batch: int
    length: int

    @property
    def total(self) -> int:
        """Everything but experts."""
        return self.dense + self.cache + self.workspace


def footprint(
    checkpoint: Checkpoint, batch: int, length: int, *, chunk: int | None = None, all_logits: bool = True
) -> Footprint:
    """What ``checkpoint`` needs for ``batch`` sequences of ``length`` tokens, prompt and answer together.

    Args:
        checkpoint: opened.
        batch, length: B and N.
        chunk: most tokens of one sequence in one forward; default ``length``, a prompt read whole.
        all_logits: a forward returns logits of all its tokens; False where only the last are asked for, as
            ``generate`` does.

    Raises:
        OptionError: a number below one.
    """
    if min(batch, length, 1 if chunk is None else chunk) < 1:
        raise OptionError(f"batch, length and chunk must be 1 or more, found {batch}, {length}, {chunk}.")
    cache = _cache_bytes(checkpoint, batch, length)
    workspace = _workspace(
        checkpoint, batch, length, min(length if chunk is None else chunk, length), all_logits, cache
    )
    return Footprint(checkpoint.dense_bytes, cache, workspace, batch, length)


class _NoExperts(nn.Module):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return torch.empty_like(hidden_states)


@torch.no_grad()
def _cache_bytes(checkpoint: Checkpoint, batch: int, length: int) -> int:
    """Run the model on the meta device and look at the cache it leaves: the model itself knows best."""
    from transformers import DynamicCache

    model = skeleton(checkpoint.config, checkpoint.compute_dtype)
    for site in checkpoint.sites:
        model.set_submodule(site.name, _NoExperts())
    for name in checkpoint.beside:
        model.set_submodule(name, nn.Module())
    cache = DynamicCache(config=model.config)
    ids = torch.zeros(batch, length, dtype=torch.int64, device="meta")
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _workspace(
    checkpoint: Checkpoint, batch: int, length: int, chunk: int, all_logits: bool, cache: int
) -> int:  # fmt: skip
    """The larger of attention, experts and logits, on top of the stream that runs through all layers."""
    config, size = checkpoint.config, checkpoint.compute_dtype.itemsize
    tokens = batch * chunk
    stream = tokens * config.hidden_size * (3 * size + 2 * 4)  # residual, input and norm; the norm in float32
    rows = tokens if all_logits else batch
    logits = rows * config.vocab_size * size + 3 * batch * config.vocab_size * 4  # sampling sorts the last in float32
    return stream + max(_attention(config, size, batch, length, chunk, cache), _experts(checkpoint, tokens), logits)


def _attention(config: Any, size: int, batch: int, length: int, chunk: int, cache: int) -> int:
    """Scaled dot-product attention: keys and values for every head, and all scores only where it must have them.

    torch computes in blocks, without a table of scores, if queries and values are equally wide per head;
    else (multi-head latent attention) it holds up to three float32 tables [B, heads, N, N].
    """
    heads = config.num_attention_heads
    usual = getattr(config, "head_dim", None) or config.hidden_size // heads
    of_keys, of_values = (getattr(config, name, None) or usual for name in ("qk_head_dim", "v_head_dim"))
    dim = max(of_keys, of_values)
    queries = 4 * batch * chunk * heads * dim * size  # before and after rotation, one temporary, and the output
    keys = 4 * batch * length * heads * dim * size  # keys and values repeated or projected for every head
    scores = 0 if of_keys == of_values else 3 * 4 * batch * heads * chunk * length
    mask = batch * chunk * length * (1 + 4)
    return queries + keys + scores + mask + -(-cache // config.num_hidden_layers)  # appending copies a layer's cache


def _experts(checkpoint: Checkpoint, tokens: int) -> int:
    """Rows sent out, rows back, their weighted sum in float32, and one expert that everybody goes to."""
    size, width = checkpoint.compute_dtype.itemsize, checkpoint.config.hidden_size
    k = max(site.top_k for site in checkpoint.sites)
    inner = max(site.shape.inner for site in checkpoint.sites)
    sums = tokens * k * width * (2 * size + 4) + tokens * width * 4
    dense = getattr(checkpoint.config, "intermediate_size", 0) or 0  # layers without experts, shared experts
    routed = tokens * (2 * width + 4 * inner) * size
    return max(sums + routed, tokens * 4 * dense * size)
