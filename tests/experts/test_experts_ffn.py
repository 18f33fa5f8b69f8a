"""Feed-forward experts: counts, casts, refusals, and gradients that cost no more than they must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts import FFN, FFNShape, SharedExpert, expert_forward
from coterie.routing import Routing
from coterie.testing.experts import ragged_routing

SHAPES = [
    FFNShape(16, 8),
    FFNShape(6, 10, fused=False, bias=True),
    FFNShape(16, 8, bias=True, transposed=True, interleaved=True, post_norm=True),
    FFNShape(16, 8, gated=False, activation="relu2"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_those_of_the_module(shape, dtype):
    ffn = FFN(5, shape).to(dtype)
    assert shape.num_parameters(5) == sum(p.numel() for p in ffn.parameters())
    assert shape.nbytes(dtype, 5) == sum(p.numel() * p.element_size() for p in ffn.parameters())
    assert {name: tuple(w.shape) for name, w in ffn.weights_of(3).items()} == shape.weight_shapes()
    assert shape.num_parameters() == sum(p.numel() for p in SharedExpert(shape).parameters())


def test_active_parameters_are_the_mean_over_items():
    """Counted through the gradient: parameters an item reaches, averaged over items with unequal k."""
    shape = FFNShape(4, 3, fused=False)
    ffn, routing = FFN(5, shape), ragged_routing(5)
    x = torch.rand(routing.num_items, 4) + 0.5
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.abs_()
    met = 0
    for t in range(routing.num_items):
        ffn.zero_grad()
        one = routing.expand(torch.tensor([t]))
        if one.num_assignments:
            ffn(x[t : t + 1], one).sum().backward()
            met += sum(int((p.grad != 0).sum()) for p in ffn.parameters())
    mean_k = routing.num_assignments / routing.num_items
    assert met / routing.num_items == pytest.approx(shape.active_parameters(mean_k))


@pytest.mark.parametrize("method", ["grouped", "loop", "reference"])
def test_weights_are_cast_to_the_dtype_of_the_rows(method):
    """float32 parameters under bfloat16 items compute as bfloat16 parameters do, to the bit."""
    ffn, routing = FFN(5, SHAPES[2], method), ragged_routing(5)
    x = torch.randn(routing.num_items, 16).bfloat16()
    mixed = ffn(x, routing)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, ffn.bfloat16()(x, routing))


def test_the_loop_does_not_make_a_gradient_of_all_experts_for_each():
    """Between each expert's gradient and the parameter stands one node that stacks them."""
    ffn, routing = FFN(5, SHAPES[0], "loop"), ragged_routing(5)
    y = ffn(torch.randn(routing.num_items, 16), routing)
    seen, waiting, accumulations = set(), [y.grad_fn], 0
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        assert node.name() != "SelectBackward0", "a stacked parameter was indexed"
        accumulations += node.name() == "UnbindBackward0"
        waiting += [parent for parent, _ in node.next_functions]
    assert accumulations == 2  # gate_up_proj and down_proj


def test_expert_forward_is_one_expert_of_the_module():
    for shape in SHAPES:
        ffn = FFN(3, shape, "loop")
        x = torch.randn(4, shape.width)
        routing = Routing.from_padded(torch.ones(4, 1), torch.full((4, 1), 2), 3)
        assert torch.equal(ffn(x, routing), expert_forward(x, ffn.weights_of(2), shape))
        assert expert_forward(x[:0], ffn.weights_of(2), shape).shape == (0, shape.width)


@pytest.mark.parametrize("shape", SHAPES)
def test_shared_expert_is_an_expert_that_everyone_has(shape):
    shared, ffn = SharedExpert(shape), FFN(1, shape)
    ffn.load_state_dict({name: weight[None] for name, weight in shared.state_dict().items()})
    x = torch.randn(2, 3, shape.width)
    everyone = Routing.from_padded(torch.ones(6, 1), torch.zeros(6, 1, dtype=torch.int64), 1)
    torch.testing.assert_close(shared(x), ffn(x.view(6, -1), everyone).view(x.shape))


def test_gated_shared_expert_is_scaled_per_item():
    shared = SharedExpert(SHAPES[0], gated_by_item=True)
    x = torch.randn(2, 3, 16)
    plain = expert_forward(x.view(6, 16), dict(shared.named_parameters()), shared.shape).view(x.shape)
    scale = torch.sigmoid((x * shared.gate.weight[0]).sum(-1, keepdim=True))
    torch.testing.assert_close(shared(x), scale * plain)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 0}, "1 or more"),
        ({"activation": "swiglu"}, "silu"),
        ({"interleaved": True, "fused": False}, "fused=True"),
        ({"interleaved": True, "gated": False}, "gated=True"),
        ({"gated": False, "gate_fn": torch.mul}, "gated=True"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, text):
    with pytest.raises(OptionError, match=text):
        FFNShape(**({"width": 8, "inner": 4} | options))


def test_wrong_options_are_refused():
    with pytest.raises(OptionError, match="1 or more"):
        FFN(0, SHAPES[0])
    with pytest.raises(OptionError, match="grouped, loop, reference"):
        FFN(2, SHAPES[0], "fast")
    with pytest.raises(OptionError, match=r"over 5 experts.*has 4"):
        FFN(4, SHAPES[0])(torch.zeros(11, 16), ragged_routing(5))


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu2", "silu", "linear"])
def test_activations_are_those_of_transformers(name):
    from transformers.activations import ACT2FN

    z = torch.linspace(-6, 6, 97)
    found = FFNShape(4, 97, gated=False, activation=name).hidden(z[None])[0]
    torch.testing.assert_close(found, ACT2FN[name](z), rtol=1e-5, atol=1e-6)


def test_post_norm_is_that_of_transformers():
    from transformers.models.muse_spark.modeling_muse_spark import MuseSparkTextInputScaledRMSNorm

    norm = MuseSparkTextInputScaledRMSNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    shape = FFNShape(16, 8, post_norm=True, post_norm_eps=1e-5)
    for dtype in (torch.float32, torch.bfloat16):
        rows: Tensor = torch.randn(7, 16).to(dtype)
        assert torch.equal(shape.finish(rows, norm.weight.detach()), norm(rows))
