from __future__ import annotations

import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from coterie.training.measure import chi_square, cross_entropy, expert_histograms, shuffled_p


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_experts=4, num_experts_per_tok=2, eos_token_id=0, pad_token_id=1, bos_token_id=None,
        )
    ).train()  # fmt: skip


def test_cross_entropy_of_one_window_is_the_loss(model):
    ids = torch.randint(50, (30,))
    with torch.no_grad():
        loss = model.eval()(input_ids=ids[None], labels=ids[None]).loss
    model.train()
    assert cross_entropy(model, ids, length=30) == pytest.approx(float(loss), rel=1e-5)
    assert model.training


def test_cross_entropy_in_windows_is_that_of_each_token_with_its_context(model):
    ids, total = torch.randint(50, (21,)), 0.0
    model.eval()
    with torch.no_grad():
        for at in range(1, 21):
            begin = 0 if at < 8 else 4 * ((at - 8) // 4 + 1)  # windows of 8, four new targets each
            logits = model(input_ids=ids[None, min(begin, 13) if at == 20 else begin : at]).logits[0, -1]
            total -= float(torch.log_softmax(logits, -1)[ids[at]])
    assert cross_entropy(model, ids, length=8, stride=4) == pytest.approx(total / 20, rel=1e-5)


def test_histograms_count_every_choice(model):
    counts = expert_histograms(model.train(), torch.randint(50, (70,)), length=16)
    assert counts.shape == (2, 4, 4)
    assert (counts.sum(-1) == 16 * 2).all()
    assert model.training


def test_chi_square_is_that_of_the_tables():
    # 3.841 and 9.488 are the 5 % points at one and four degrees of freedom
    statistic, freedom, p = chi_square(torch.tensor([[30, 10], [20, 20]]))
    assert (statistic, freedom) == (pytest.approx(16 / 3), 1)
    assert p == pytest.approx(0.0209213, abs=1e-6)
    assert chi_square(torch.tensor([[7, 0, 5], [7, 0, 5]])) == (0, 1, 1)
    assert float(torch.special.gammaincc(torch.tensor(2.0), torch.tensor(9.487729 / 2))) == pytest.approx(0.05)


def test_one_column_tells_nothing():
    assert chi_square(torch.tensor([[3, 0], [9, 0]])) == (0.0, 0, 1.0)


def test_shuffled_windows():
    same = torch.randint(0, 9, (40, 6))
    assert shuffled_p([same[:20], same[20:]], shuffles=99) > 0.02
    other = same[20:] + torch.tensor([9, 0, 0, 0, 0, 0])
    assert shuffled_p([same[:20], other], shuffles=99) == pytest.approx(0.01)


def test_windows_that_resemble_themselves_are_no_proof():
    """Each window has one expert of its own: by tokens that looks like a difference, by windows it does not."""
    rows = torch.eye(4, dtype=torch.int64)[torch.randint(4, (12,))] * 100
    groups = [rows[:6], rows[6:]]
    if chi_square(torch.stack([group.sum(0) for group in groups]))[0] > 0:
        assert chi_square(torch.stack([group.sum(0) for group in groups]))[2] < 1e-6
    assert shuffled_p(groups, shuffles=99) > 0.05
