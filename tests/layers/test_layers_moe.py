"""The layer: against transformers' own blocks with the same weights, and by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from coterie.errors import OptionError
from coterie.experts import FFN, FFNShape, SharedExpert
from coterie.layers import MoE
from coterie.routers import Router, group_limited, top_k
from coterie.routing import RouteContext

D, F, E, K = 16, 8, 8, 3
SHAPE = FFNShape(D, F)
SHARED = FFNShape(D, 2 * F, fused=False)
FFN_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass
class Family:
    """A block of transformers, our layer, and which of our parameters holds what theirs does."""

    block: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    router: Callable[[], Router]
    options: dict[str, Any] = field(default_factory=dict)
    shared: Callable[[], nn.Module] | None = None
    names: dict[str, str] = field(default_factory=dict)

    def theirs(self) -> nn.Module:
        sizes = {"hidden_size": D, "num_experts_per_tok": K, "hidden_act": "silu", "norm_topk_prob": True}
        block = self.block(self.config(**(sizes | self.options), experts_implementation="eager"))
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.4)
        return block

    def ours(self, theirs: nn.Module) -> MoE:
        moe = MoE(self.router(), FFN(E, SHAPE), self.shared() if self.shared else None)
        moe.load_state_dict({mine: theirs.state_dict()[name] for mine, name in self.all_names().items()})
        return moe.to(next(theirs.parameters()).dtype)

    def all_names(self) -> dict[str, str]:
        routed = {"router.score.weight": "gate.weight"}
        return routed | {f"experts.{n}": f"experts.{n}" for n in ("gate_up_proj", "down_proj")} | self.names


def qwen2_shared() -> SharedExpert:
    return SharedExpert(SHARED, gated_by_item=True)


FAMILIES = {
    "mixtral": Family(
        MixtralSparseMoeBlock, transformers.MixtralConfig, lambda: top_k(D, E, K),
        {"num_local_experts": E, "intermediate_size": F},
    ),
    "olmoe": Family(
        OlmoeSparseMoeBlock, transformers.OlmoeConfig, lambda: top_k(D, E, K, renormalise=False, rounded=True),
        {"num_experts": E, "intermediate_size": F, "norm_topk_prob": False},
    ),
    "qwen3_moe": Family(
        Qwen3MoeSparseMoeBlock, transformers.Qwen3MoeConfig, lambda: top_k(D, E, K, rounded=True),
        {"num_experts": E, "moe_intermediate_size": F},
    ),
    "qwen2_moe": Family(
        Qwen2MoeSparseMoeBlock, transformers.Qwen2MoeConfig, lambda: top_k(D, E, K, rounded=True),
        {"num_experts": E, "moe_intermediate_size": F, "shared_expert_intermediate_size": 2 * F},
        qwen2_shared,
        {"shared.gate.weight": "shared_expert_gate.weight"}
        | {f"shared.{name}": f"shared_expert.{name}.weight" for name in FFN_NAMES},
    ),
    "deepseek_v3": Family(
        DeepseekV3MoE, transformers.DeepseekV3Config,
        lambda: group_limited(D, E, K, num_groups=4, keep_groups=2, scale=2.5),
        {
            "n_routed_experts": E, "moe_intermediate_size": F, "n_shared_experts": 2, "n_group": 4, "topk_group": 2,
            "routed_scaling_factor": 2.5,
        },
        lambda: SharedExpert(SHARED),
        {"router.select.correction": "gate.e_score_correction_bias"}
        | {f"shared.{name}": f"shared_experts.{name}.weight" for name in FFN_NAMES},
    ),
}  # fmt: skip
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def run(block: nn.Module, x: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Output, gradient of the items and of every parameter."""
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(mix)
    assert x.grad is not None
    return y.detach(), x.grad, {name: p.grad for name, p in block.named_parameters()}


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = float(expected.abs().max())
    assert scale > 0, name
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")


@each_family
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_agrees_with_transformers(family, implementation, dtype, tolerance):
    theirs = family.theirs().to(dtype)
    theirs.experts.config._experts_implementation = implementation
    ours = family.ours(theirs)
    x, mix = torch.randn(2, 5, D).to(dtype), torch.randn(2, 5, D).to(dtype)
    y, x_grad, grads = run(ours, x, mix)
    their_y, their_x_grad, their_grads = run(theirs, x, mix)
    assert y.dtype == dtype
    assert_near(y, their_y, tolerance, "outputs")
    assert_near(x_grad, their_x_grad, tolerance, "gradient of items")
    for mine, name in family.all_names().items():
        if name in their_grads:
            assert_near(grads[mine], their_grads[name], tolerance, f"gradient of {mine}")
    assert set(their_grads) <= set(family.all_names().values())


@pytest.fixture
def moe() -> MoE:
    return MoE(top_k(D, E, K), FFN(E, SHAPE), SharedExpert(SHARED))


@pytest.mark.parametrize("leading", [(), (7,), (2, 3), (2, 1, 4), (0,), (2, 0)], ids=str)
def test_every_leading_dimension_counts_items(moe, leading):
    x = torch.randn(*leading, D)
    y, routing = moe.route_and_run(x)
    assert y.shape == x.shape
    assert routing.check().num_items == x.numel() // D
    torch.testing.assert_close(y.reshape(-1, D), moe(x.reshape(-1, D)))


def test_is_the_sum_of_its_parts(moe):
    x = torch.randn(6, D)
    routing = moe.router(x, RouteContext())
    assert torch.equal(moe(x), moe.experts(x, routing) + moe.shared(x))
    moe.shared = None
    assert torch.equal(moe(x), moe.experts(x, routing))


def test_hands_the_context_to_the_router(moe):
    x = torch.randn(6, D)
    mask = torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    y, routing = moe.route_and_run(x, RouteContext(mask=mask, overrides={"k": 2}))
    assert routing.experts_per_item().tolist() == [2, 2, 0, 2, 0, 2]
    assert torch.equal(y[~mask], moe.shared(x)[~mask])


def test_keeps_nothing_between_calls(moe):
    x = torch.randn(2, 3, D)
    before = set(vars(moe)), set(vars(moe.router)), set(vars(moe.experts))
    state = copy.deepcopy(moe.state_dict())
    first = moe(x)
    moe(torch.randn(4, D))
    assert torch.equal(moe(x), first)
    assert (set(vars(moe)), set(vars(moe.router)), set(vars(moe.experts))) == before
    assert all(torch.equal(value, state[name]) for name, value in moe.state_dict().items())


def test_learns():
    """A layer can fit another one's outputs: gradients reach router, experts and shared expert alike."""
    moe = MoE(top_k(D, E, K), FFN(E, SHAPE), SharedExpert(SHARED))
    x = torch.randn(64, D)
    target = torch.randn(64, D) * 0.1
    optimizer = torch.optim.Adam(moe.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (moe(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_unequal_numbers_of_experts_are_refused():
    with pytest.raises(OptionError, match="8 experts and there are 4"):
        MoE(top_k(D, E, K), FFN(4, SHAPE))
