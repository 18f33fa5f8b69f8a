"""What a model needs beside its experts: dense weights, KV cache, workspace. Computed, nothing allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import most, own_layout, skeleton, takes, tensors_in, text_inputs
from coterie.models.find import find_sites
from coterie.models.meter import Meter
from coterie.routers import Router


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
    whole = chunk is None or checkpoint.config.is_encoder_decoder  # an encoder reads its text at once
    chunk = length if whole else min(chunk or length, length)
    cache, forward = _rehearse(checkpoint, batch, length, chunk, all_logits)
    estimate = _estimate(checkpoint, batch, length, chunk, all_logits, cache)
    return Footprint(checkpoint.dense_bytes, cache, max(estimate, forward), batch, length)


class _Rehearsal(nn.Module):
    """Experts without weights that allocate what experts allocate."""

    def __init__(self, site: ExpertSite, original: nn.Module) -> None:
        super().__init__()
        self.site = site
        own = own_layout(original)
        self.copies = site.num_experts if own is not None and own.repeats else 1

    def forward(self, hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        tokens = hidden_states.numel() // hidden_states.shape[-1] // self.copies
        nbytes = _expert_bytes(self.site, tokens, hidden_states.dtype.itemsize)
        if self.copies > 1:  # which of the rows are not zero, and a sum for each
            nbytes += hidden_states.numel() * (1 + 4)
        torch.empty(nbytes, dtype=torch.uint8, device=hidden_states.device)  # counted, and gone
        return torch.empty_like(hidden_states)


class _RouterRehearsal(nn.Module):
    """A router of ours that decides nothing and allocates what deciding takes: there are no numbers to decide by."""

    def __init__(self, bridge: RouterBridge, most: int) -> None:
        super().__init__()
        self.bridge, self.most = (bridge,), most  # in a tuple: not a part of this
        self.carried: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router = self.bridge[0].inner
        tokens, device = hidden_states.numel() // hidden_states.shape[-1], hidden_states.device
        routes = router.routes.num_routes if isinstance(router, Router) else router.num_experts
        carry = router.score.carry_width if isinstance(router, Router) else 0
        self.carried = torch.empty(tokens, carry, dtype=torch.float32, device=device)
        # logits, probabilities, what sorting and summing them takes; states of a cell; assignments sorted
        torch.empty(
            tokens * (routes * (6 * 4 + 3 * 8) + carry * 10 * 4 + self.most * 8 * 8), dtype=torch.uint8, device=device
        )
        logits = torch.empty(tokens, routes, dtype=torch.float32, device=device)
        weights = torch.empty(tokens, self.most, dtype=torch.float32, device=device)
        return logits, weights, torch.empty(tokens, self.most, dtype=torch.int64, device=device)


@torch.no_grad()
def _rehearse(checkpoint: Checkpoint, batch: int, length: int, chunk: int, all_logits: bool) -> tuple[int, int]:
    """Bytes of the cache, and of what the last piece of a prompt allocates beside it.

    The model itself knows best: it runs on the meta device, and every storage is counted.
    """
    model = skeleton(checkpoint.config, checkpoint.compute_dtype)
    for live, site in zip(find_sites(model), checkpoint.sites, strict=True):
        model.set_submodule(site.name, _Rehearsal(site, model.get_submodule(site.name)))
        if isinstance(live.gate, RouterBridge):
            model.set_submodule(live.gate_name, _RouterRehearsal(live.gate, site.room))
    for name in checkpoint.beside:
        model.set_submodule(name, nn.Module())
    few: dict[str, Any] = {} if all_logits or not takes(model, "logits_to_keep") else {"logits_to_keep": 1}
    if takes(model, "use_cache"):  # whatever the config says, which training often leaves at False
        few["use_cache"] = True
    with Meter() as meter:
        cache = None
        for tokens in (length - chunk, chunk):
            meter.restart()
            if tokens:
                ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
                given: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
                cache = getattr(
                    model(input_ids=ids, **text_inputs(model, ids), **few, **given), "past_key_values", None
                )
    held = sum(tensor.nbytes for tensor in tensors_in(getattr(cache, "layers", cache)))
    return held, meter.peak - held + _sampling(checkpoint, batch)


def _estimate(
    checkpoint: Checkpoint, batch: int, length: int, chunk: int, all_logits: bool, cache: int
) -> int:  # fmt: skip
    """The larger of attention, experts and logits, on top of the stream that runs through all layers.

    Kernels need memory of their own, which no rehearsal sees; this is what they were seen to take.
    """
    config, size = checkpoint.text, checkpoint.compute_dtype.itemsize
    tokens = batch * chunk
    stream = tokens * config.hidden_size * (3 * size + 2 * 4)  # residual, input and norm; the norm in float32
    logits = (tokens if all_logits else batch) * checkpoint.vocab_size * size + _sampling(checkpoint, batch)
    experts = max(_expert_bytes(site, tokens, size) for site in checkpoint.sites)
    dense = tokens * 4 * most(config, "intermediate_size") * size  # layers without experts, shared experts
    return stream + max(_attention(config, size, batch, length, chunk, cache), experts, dense, logits)


def _sampling(checkpoint: Checkpoint, batch: int) -> int:
    return 3 * batch * checkpoint.vocab_size * 4  # the last logits are sorted in float32


def _attention(config: Any, size: int, batch: int, length: int, chunk: int, cache: int) -> int:
    """Scaled dot-product attention: keys and values for every head, and all scores only where it must have them.

    torch computes in blocks, without a table of scores, if queries and values are equally wide per head;
    else (multi-head latent attention) it holds up to three float32 tables [B, heads, N, N].
    """
    heads = most(config, "num_attention_heads")
    usual = most(config, "head_dim") or config.hidden_size // max(1, heads)
    of_keys, of_values = (most(config, name) or usual for name in ("qk_head_dim", "v_head_dim"))
    dim = max(of_keys, of_values)
    queries = 4 * batch * chunk * heads * dim * size  # before and after rotation, one temporary, and the output
    keys = 4 * batch * length * heads * dim * size  # keys and values repeated or projected for every head
    scores = 0 if of_keys == of_values else 3 * 4 * batch * heads * chunk * length
    mask = batch * chunk * length * (1 + 4)
    return queries + keys + scores + mask + -(-cache // config.num_hidden_layers)  # appending copies a layer's cache


def _expert_bytes(site: ExpertSite, tokens: int, size: int) -> int:
    """Rows sent out, rows back, their weighted sum in float32, and one expert that everybody goes to."""
    width, inner = site.shape.width, site.shape.inner
    sums = tokens * site.room * width * (2 * size + 4) + tokens * width * 4
    passing = site.storage.scratch_bytes(site.dtype) if site.kind is None else site.kind.passing_bytes
    return sums + tokens * (2 * width + 4 * inner) * size + passing
