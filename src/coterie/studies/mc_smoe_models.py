"""The models of the MC-SMoE study: redundancy planted on purpose, what is seen of a live model, and its shrinking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import FFN, Aliased, Experts
from coterie.models.attach import attach, session_of
from coterie.models.find import MoESite, find_sites
from coterie.models.routed import RouterSpec, route
from coterie.ops.align import permute_neurons
from coterie.ops.lowrank import low_rank, stable_rank
from coterie.ops.similarity import logit_similarity
from coterie.routers import Router, top_k
from coterie.studies.learning import BLOCK
from coterie.surgery.grouping import Grouping
from coterie.surgery.merge import match_experts, merge_experts
from coterie.surgery.orientation import canonical, canonical_shape, laid_out

LAYERS, WIDTH, INNER, FAMILIES, CLONES = 4, 96, 128, 4, 4
EXPERTS = FAMILIES * CLONES
CHANGED = range(1, LAYERS)  # layers that are compressed: the first stays, as in the paper
NOISE, JITTER = 0.02, 0.02  # of the root mean square of a matrix, of a router's row
# an item's weight does not depend on how many experts there are: cloning and dropping rows rescale nothing
ROUTER = {"k": 1, "activation": "sigmoid", "renormalise": False}

_FILE = "model.pt"


def made(seed: int, experts: int) -> Any:
    """A mixture over bytes: 4 layers of width 96, one of ``experts`` gated experts of 128 for each byte. Train mode."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=INNER, moe_intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, head_dim=WIDTH // 4,
        num_experts=experts, num_experts_per_tok=1, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[],
        max_position_embeddings=BLOCK, output_router_logits=False, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    torch.manual_seed(seed + 1)
    route(model, RouterSpec("top_k", ROUTER))
    return model.train()


def save(model: Any, place: Path) -> None:
    """Keep a model of `made` in the directory of its run."""
    torch.save(model.state_dict(), place / _FILE)


def load(place: Path, experts: int = EXPERTS) -> Any:
    """What `save` kept, in eval mode."""
    model = made(0, experts)
    model.load_state_dict(torch.load(place / _FILE, weights_only=True))
    return model.eval()


@torch.no_grad()
def cloned(base: Any, seed: int) -> Any:
    """Each expert of ``base`` four times: neurons in another order, 2 % noise, its row of the router jittered."""
    model = made(seed, EXPERTS)
    state = base.state_dict()
    model.load_state_dict({name: value for name, value in state.items() if ".mlp." not in name}, strict=False)
    generator = torch.Generator().manual_seed(seed + 2)
    for here, there in zip(find_sites(model), find_sites(base), strict=True):
        ours, theirs = ffn_of(here), ffn_of(there)
        families = canonical(dict(theirs.named_parameters()), theirs.shape)
        copies = [_copy({n: w[e // CLONES] for n, w in families.items()}, generator) for e in range(EXPERTS)]
        stacks = laid_out({name: torch.stack([one[name] for one in copies]) for name in families}, ours.shape)
        for name, stack in stacks.items():
            getattr(ours, name).copy_(stack)
        rows = gate_of(there).repeat_interleave(CLONES, 0)
        gate_of(here).copy_(_noisy(rows, JITTER, generator))
    return model


@dataclass(frozen=True, eq=False)
class Observed:
    """What calibration saw of one layer.

    Attributes:
        usage: [E] assignments.
        similarity: [E, E] cosine of the columns of router logits.
        reap: [E] mean of weight times norm of the output over an expert's items.
    """

    usage: Tensor
    similarity: Tensor
    reap: Tensor


@torch.no_grad()
def observe(model: Any, windows: Tensor, batch: int = 32) -> dict[str, Observed]:
    """Site -> what is seen of it on ``windows [B, N]``, one forward over all of them."""
    sites, session = find_sites(model), session_of(model)
    assert session is not None
    inputs: dict[str, Tensor] = {}
    hooks = [site.experts.register_forward_pre_hook(_keeper(inputs, site.name)) for site in sites]
    usage = {site.name: torch.zeros(site.num_experts, dtype=torch.float64) for site in sites}
    reap = {name: torch.zeros_like(each) for name, each in usage.items()}
    logits: dict[str, list[Tensor]] = {name: [] for name in usage}
    session.keep = True
    try:
        for rows in windows.split(batch):
            model(input_ids=rows, use_cache=False)
            for site in sites:
                routing = session.routings[site.name]
                outputs = site.experts.inner.rows(inputs[site.name], routing)  # type: ignore[union-attr, operator]
                strength = routing.weight.double() * outputs.double().norm(dim=1)
                usage[site.name] += torch.bincount(routing.expert, minlength=site.num_experts)
                reap[site.name].index_add_(0, routing.expert, strength)
                assert routing.logits is not None
                logits[site.name].append(routing.logits)
    finally:
        session.keep, session.routings = False, {}
        for hook in hooks:
            hook.remove()
    return {
        name: Observed(used, logit_similarity(torch.cat(logits[name])), reap[name] / used.clamp_min(1))
        for name, used in usage.items()
    }


def merge(model: Any, groups: Mapping[str, Grouping], weights: Mapping[str, Tensor], align: Any = "weight") -> None:
    """Make each group of experts one, in place; routers decide as before, through a map.

    Args:
        model: of `made`.
        groups: site -> who is merged with whom.
        weights: site -> [E] what an expert counts.
        align: as of `coterie.surgery.merge_experts`.
    """

    def factory(site: MoESite, original: nn.Module) -> Experts:
        ours = ffn_of(site)
        if site.name not in groups:
            return ours
        grouping, stacks = groups[site.name], canonical(_detached(ours), ours.shape)
        orders = match_experts(stacks, grouping, align=align)
        merged = merge_experts(stacks, grouping, weights[site.name], orders)
        return Aliased(_ffn(ours, merged), grouping.labels)

    attach(model, experts=factory)


def prune(model: Any, kept: Mapping[str, tuple[int, ...]]) -> None:
    """Leave out all experts but ``kept`` with their rows of the router, in place."""

    def experts(site: MoESite, original: nn.Module) -> Experts:
        ours = ffn_of(site)
        stacks = canonical(_detached(ours), ours.shape)
        return _ffn(ours, {n: w[list(kept[site.name])] for n, w in stacks.items()}) if site.name in kept else ours

    def router(site: MoESite, original: Any) -> Router:
        rows = gate_of(site).detach()
        rows = rows[list(kept[site.name])] if site.name in kept else rows
        new = top_k(WIDTH, len(rows), **ROUTER)
        new.score.weight = nn.Parameter(rows.clone())
        return new.train(original.training)

    attach(model, experts=experts, router=router)


@torch.no_grad()
def cut_ranks(model: Any, rank: int) -> None:
    """Every matrix of the experts of the compressed layers becomes its nearest of ``rank``, in place."""
    for site in changed_sites(model):
        ours = ffn_of(site)
        stacks = canonical(dict(ours.named_parameters()), ours.shape)
        cut = {name: torch.stack([_nearest(one, rank) for one in stack]) for name, stack in stacks.items()}
        for name, stack in laid_out(cut, ours.shape).items():
            getattr(ours, name).copy_(stack)


def stable_ranks(model: Any) -> list[float]:
    """Mean stable rank of the gate matrices, of each compressed layer."""
    found = []
    for site in changed_sites(model):
        ours = ffn_of(site)
        gates = canonical(_detached(ours), ours.shape)["gate_proj"]
        found.append(sum(map(stable_rank, gates)) / len(gates))
    return found


def changed_sites(model: Any) -> list[MoESite]:
    """The layers that are compressed."""
    return [site for site in find_sites(model) if site.layer in CHANGED]


def ffn_of(site: MoESite) -> FFN:
    """Its experts, without what is around them."""
    return next(part for part in site.experts.modules() if isinstance(part, FFN))


def gate_of(site: MoESite) -> Tensor:
    """[E, D] the rows of its router."""
    rows: Tensor = site.gate.inner.score.weight  # type: ignore[union-attr, assignment]
    return rows


def _copy(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    order = torch.randperm(INNER, generator=generator)
    return {n: _noisy(w, NOISE, generator) for n, w in permute_neurons(weights, order).items()}


def _noisy(weight: Tensor, share: float, generator: torch.Generator) -> Tensor:
    size = float(weight.square().mean().sqrt()) * share
    return weight + size * torch.randn(weight.shape, generator=generator)


def _keeper(inputs: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0].reshape(-1, args[0].shape[-1])

    return keep


def _detached(ours: FFN) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in ours.named_parameters()}


def _ffn(like: FFN, stacks: Mapping[str, Tensor]) -> FFN:
    shape = canonical_shape(like.shape)
    with torch.device("meta"):
        experts = FFN(len(stacks["down_proj"]), shape)
    for name in shape.weight_shapes():
        setattr(experts, name, nn.Parameter(stacks[name].clone()))
    return experts.train(like.training)


def _nearest(weight: Tensor, rank: int) -> Tensor:
    up, down = low_rank(weight, rank)
    return up @ down
