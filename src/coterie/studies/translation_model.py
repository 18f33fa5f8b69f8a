"""A small encoder-decoder with experts in every second layer, and what it learns by.

transformers gives a feed-forward block its hidden states alone, and encoder and decoder have items of their own. So the
layers of one model share a `Roll`, which says who the rows are and keeps what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import FFN
from coterie.experts.shape import FFNShape
from coterie.layers import MoE
from coterie.ops.balance import switch_balance
from coterie.routers import SiteShape, build_routers
from coterie.routing import RouteContext, Routing
from coterie.training import divergence

WIDTH, INNER, HEADS, LAYERS, DROPOUT = 128, 512, 4, 2, 0.1
STD = 0.05  # of all that is drawn at the start; with less it learns more slowly
POSITIONS = 256  # tokens of a sentence at most


@dataclass
class Roll:
    """Who the rows of a forward are. Set between forwards; one forward at a time.

    Attributes:
        base: where every layer's context starts: step, seed, training, overrides.
        passes: the batch is that many copies of itself.
        first: number of the first sequence, so that draws do not depend on how sequences are batched.
        masks: side ("encoder", "decoder") -> [B, N] which items are real; all where it is not given.
        routings: site -> routing of the last forward.
    """

    base: RouteContext = field(default_factory=RouteContext)
    passes: int = 1
    first: int = 0
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    routings: dict[str, Routing] = field(default_factory=dict)

    def context(self, site: str, batch: int, length: int) -> RouteContext:
        """For a layer with ``batch * length`` items, sequence after sequence."""
        row = torch.arange(batch).repeat_interleave(length)
        rows = batch // self.passes
        mask = self.masks.get(site.partition(".")[0])
        return replace(
            self.base, site=site, sequence=self.first + row % rows, pass_id=row // rows,
            position=torch.arange(length).repeat(batch), mask=None if mask is None else mask.reshape(-1).bool(),
        )  # fmt: skip


class ExpertLayer(nn.Module):
    """In place of a feed-forward block: [B, N, D] -> the same shape. Final."""

    def __init__(self, site: str, moe: MoE, roll: Roll) -> None:
        super().__init__()
        self.site, self.moe, self.roll = site, moe, roll

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, length, _ = hidden_states.shape
        context = self.roll.context(self.site, batch, length)
        output, self.roll.routings[self.site] = self.moe.route_and_run(hidden_states, context)
        return output


def translator(
    seed: int, entries: int, end: int, pad: int, *, num_experts: int, router: str, options: Mapping[str, Any]
) -> tuple[Any, Roll]:
    """transformers' Marian, small: 2 + 2 layers of width 128, one embedding for both languages and the output.

    The first layer of either side has ``num_experts`` feed-forwards of 512, routed by a preset; the others one. All
    but experts and routers start alike for a seed. In train mode.
    """
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(seed)
    model = MarianMTModel(MarianConfig(
        vocab_size=entries, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, activation_function="relu",
        dropout=DROPOUT, attention_dropout=0.0, activation_dropout=0.0, init_std=STD, scale_embedding=True,
        max_position_embeddings=POSITIONS, pad_token_id=pad, eos_token_id=end, decoder_start_token_id=pad,
        bos_token_id=None, forced_eos_token_id=None,
    ))  # fmt: skip
    roll = Roll()
    places = [(side, number) for side in ("encoder", "decoder") for number in range(0, LAYERS, 2)]
    routers = build_routers(router, [SiteShape(WIDTH, num_experts, 1, entries)] * len(places), options)
    for (side, number), each in zip(places, routers, strict=True):
        layer = model.get_submodule(f"model.{side}.layers.{number}")
        # the layer computes fc2(activation(fc1(x))), and this is all of it
        layer.fc1 = ExpertLayer(f"{side}.{number}", MoE(each, _experts(num_experts)), roll)
        layer.activation_fn, layer.fc2 = nn.Identity(), nn.Identity()
    return model.train(), roll


def _experts(num_experts: int) -> FFN:
    """Drawn as Marian draws its feed-forwards."""
    experts = FFN(num_experts, FFNShape(WIDTH, INNER, gated=False, bias=True, activation="relu"))
    for name, weight in experts.named_parameters():
        if not name.endswith("_bias"):
            nn.init.normal_(weight, std=STD)
    return experts


class Lesson(nn.Module):
    """The model with its loss, for Trainer: cross entropy, agreement of two passes, balance. Final.

    With ``alpha`` the batch is put through twice in one forward, and the loss is ``(CE_1 + CE_2) / 2 + alpha / 2 CR``
    in nats per target token: the published ``CE_1 + CE_2 + alpha CR``, summed over tokens and divided by those of one
    pass, halved.

    Args:
        model, roll: of `translator`.
        alpha: of the consistency; None is one pass.
        balance: coefficient of the Switch balance loss, a mean over layers.
    """

    def __init__(self, model: Any, roll: Roll, *, alpha: float | None, balance: float) -> None:
        super().__init__()
        self.model, self.roll, self.alpha, self.balance = model, roll, alpha, balance
        self.step = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        passes = 1 if self.alpha is None else 2
        twice = [each.repeat(passes, 1) for each in (input_ids, attention_mask, labels)]
        self._tell(passes, twice[1], twice[2] != -100)
        logits = self.model(
            input_ids=twice[0], attention_mask=twice[1], use_cache=False,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(twice[2]),
        ).logits  # fmt: skip
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), twice[2].flatten())
        if self.alpha:
            first, second = logits.chunk(2)
            loss = loss + self.alpha / 2 * divergence(first, second, labels != -100)
        if self.balance:
            terms = [switch_balance(routing) for routing in self.roll.routings.values()]
            loss = loss + self.balance * sum(terms[1:], start=terms[0]) / len(terms)
        self.roll.masks, self.roll.routings = {}, {}
        return {"loss": loss}

    def _tell(self, passes: int, source: Tensor, target: Tensor) -> None:
        self.roll.passes, self.roll.masks = passes, {"encoder": source, "decoder": target}
        self.roll.base = replace(self.roll.base, step=self.step, training=self.training)
        self.step += self.training
