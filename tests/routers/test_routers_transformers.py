"""The presets against the router classes of transformers, at tiny size: same experts, same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, OlmoeConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from coterie.routers import Router, group_limited, top_k
from coterie.routers.score import LinearScore
from coterie.routers.select import GroupLimited
from coterie.routing import Routing

D, E, K, T = 16, 8, 3, 64


def mixtral() -> tuple[nn.Module, Router]:
    config = MixtralConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=K)
    return MixtralTopKRouter(config), top_k(D, E, K)


def olmoe(norm: bool) -> tuple[nn.Module, Router]:
    config = OlmoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=K, norm_topk_prob=norm)
    return OlmoeTopKRouter(config), top_k(D, E, K, renormalise=norm, rounded=True)


def qwen3(norm: bool) -> tuple[nn.Module, Router]:
    config = Qwen3MoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=K, norm_topk_prob=norm)
    return Qwen3MoeTopKRouter(config), top_k(D, E, K, renormalise=norm, rounded=True)


def gpt_oss() -> tuple[nn.Module, Router]:
    config = GptOssConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=K)
    return GptOssTopKRouter(config), top_k(D, E, K, softmax="after", bias=True, rounded=True)


def deepseek(norm: bool, num_groups: int, keep_groups: int) -> tuple[nn.Module, Router]:
    config = DeepseekV3Config(
        hidden_size=D, n_routed_experts=E, num_experts_per_tok=K, n_group=num_groups, topk_group=keep_groups,
        norm_topk_prob=norm, routed_scaling_factor=2.5,
    )  # fmt: skip
    ours = group_limited(D, E, K, num_groups=num_groups, keep_groups=keep_groups, renormalise=norm, scale=2.5)
    return DeepseekV3TopkRouter(config), ours


PAIRS: dict[str, Callable[[], tuple[nn.Module, Router]]] = {
    "mixtral": mixtral,
    "olmoe": lambda: olmoe(False),
    "olmoe normed": lambda: olmoe(True),
    "qwen3": lambda: qwen3(True),
    "qwen3 raw": lambda: qwen3(False),
    "gpt-oss": gpt_oss,
    "deepseek-v3": lambda: deepseek(True, 4, 2),
    "deepseek-v3 raw": lambda: deepseek(False, 2, 1),
    "deepseek-v3 ungrouped": lambda: deepseek(True, 1, 1),
}


def same_weights(theirs: nn.Module, ours: Router) -> None:
    """Random parameters for theirs, copied into ours."""
    assert isinstance(ours.score, LinearScore)
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.normal_(std=0.3)
        ours.score.weight.copy_(theirs.weight)
        if ours.score.bias is not None:
            ours.score.bias.copy_(theirs.bias)
        if isinstance(ours.select, GroupLimited):
            assert ours.select.correction is not None
            ours.select.correction.copy_(theirs.e_score_correction_bias)


def without_ties(x: Tensor, theirs: nn.Module) -> Tensor:
    """The items whose logits all differ: on equal ones a kernel is free to choose."""
    ordered = theirs(x)[0].sort(dim=-1).values
    return x[(ordered.diff(dim=-1) > 0).all(dim=-1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_transformers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs, ours = PAIRS[name]()
    same_weights(theirs, ours)
    # a checkpoint keeps the correction in float32, whatever the dtype of its matrices
    for module, matrices in ((theirs, theirs.parameters()), (ours, ours.parameters())):
        for parameter in matrices:
            parameter.data = parameter.data.to(dtype)
        assert all(buffer.dtype == torch.float32 for buffer in module.buffers())
    x = without_ties(torch.randn(T, D).to(dtype), theirs)
    assert len(x) > T // 2

    logits, weights, indices = theirs(x)
    found = ours(x).check()
    assert torch.equal(found.logits, logits)
    expected = Routing.from_padded(weights, indices, E)
    assert torch.equal(found.expert, expected.expert)
    assert torch.equal(found.item, expected.item)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-6, atol=1e-7)


def test_gradients_agree_with_transformers() -> None:
    torch.manual_seed(1)
    theirs, ours = deepseek(True, 4, 2)
    same_weights(theirs, ours)
    x, mix = torch.randn(T, D), torch.randn(T, E)
    _, weights, indices = theirs(x)
    (Routing.from_padded(weights, indices, E).dense() * mix).sum().backward()
    (ours(x).dense() * mix).sum().backward()
    assert isinstance(ours.score, LinearScore)
    torch.testing.assert_close(ours.score.weight.grad, theirs.weight.grad)
