"""Distillation: the loss beside a plain one, identical models, frozen routers, teachers alive and stored, resuming."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import LENGTH, VOCABULARY, dense_model, options_for, routed_model, same_bits, weights_of, windows_for
from torch.nn import functional as F

from coterie.errors import CheckpointError, OptionError
from coterie.testing.checkpoints import tiny_model
from coterie.training import LiveTeacher, StoredTeacher, distill, distillation_loss, store_teacher
from coterie.training.distill import router_patterns
from coterie.training.trainer import read_log


def batch_of(options, first=0, count=2):
    data = windows_for(options)
    return torch.utils.data.default_collate([data[first + number] for number in range(count)])


def test_the_loss_is_the_divergence_per_valid_token():
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    p, q = (torch.softmax(each.double() / 3, -1)[mask] for each in (teacher, student))
    plain = (p * (p.log() - q.log())).sum() / 5
    assert distillation_loss(student, teacher, mask, 3) == pytest.approx(float(plain), abs=1e-6)
    longer = torch.cat([student, torch.randn(2, 9, 7)], 1), torch.cat([teacher, torch.randn(2, 9, 7)], 1)
    padded = F.pad(mask, (0, 9))
    assert distillation_loss(*longer, padded, 3) == pytest.approx(float(plain), abs=1e-6)


def test_who_agrees_learns_nothing():
    logits = torch.randn(3, 4, 9, requires_grad=True)
    loss = distillation_loss(logits, logits.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert float(logits.grad.abs().max()) < 1e-8


def test_what_is_impossible_for_the_teacher_costs_nothing_and_gives_no_nan():
    student = torch.randn(2, 4, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -math.inf, 2.0]]).expand(2, 4)
    loss = distillation_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    empty = distillation_loss(student, teacher, torch.zeros(2, dtype=torch.bool))
    assert empty.item() == 0


@pytest.mark.parametrize(
    "make", [routed_model, lambda: tiny_model("mixtral", width=16).train()], ids=["ours", "theirs"]
)
def test_routers_stay_as_they_are(make, tmp_path):
    student, teacher = make(), make()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = weights_of(student)
    options = options_for(2)
    distill(student, teacher, windows_for(options), options, tmp_path)
    gates = {pattern.removesuffix("*") for pattern in router_patterns(student)}
    assert gates
    moved = {name: not torch.equal(value, before[name]) for name, value in weights_of(student).items()}
    assert not any(changed for name, changed in moved.items() if name.startswith(tuple(gates)))
    assert sum(moved.values()) > len(moved) / 2
    assert all(parameter.requires_grad for parameter in student.parameters())
    (first, _) = (record for record in read_log(tmp_path) if "distillation" in record)
    assert first["distillation"] > 0
    assert first["loss"] == pytest.approx(first["cross_entropy"] + first["distillation"], abs=1e-4)
    assert "balance" not in first


def test_the_student_comes_nearer_to_its_teacher(tmp_path):
    teacher, student = dense_model(), dense_model()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    options = options_for(12, rate=3e-3)
    tutor, batch = LiveTeacher(teacher), batch_of(options)
    with torch.no_grad():
        before = float(tutor.divergence(0, batch, student(batch["input_ids"]).logits))
    distill(student, teacher, windows_for(options), options, tmp_path, kd_weight=20.0)
    with torch.no_grad():
        after = float(tutor.divergence(0, batch, student(batch["input_ids"]).logits))
    assert after < 0.7 * before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_stored_teacher_says_what_the_live_one_says(tmp_path):
    teacher, student = routed_model().eval(), dense_model()
    options = options_for(3)
    store_teacher(teacher, windows_for(options), tmp_path / "all", top=VOCABULARY, temperature=1.5, batch=4)
    store_teacher(teacher, windows_for(options), tmp_path / "few", top=3, temperature=1.5)
    live, whole, few = (
        LiveTeacher(teacher, 1.5), StoredTeacher(tmp_path / "all"), StoredTeacher(tmp_path / "few")
    )  # fmt: skip
    batch = batch_of(options, first=2)
    with torch.no_grad():
        logits = student(batch["input_ids"]).logits
        said = float(live.divergence(2, batch, logits))
        assert float(whole.divergence(2, batch, logits)) == pytest.approx(said, rel=1e-4)
        assert 0 < float(few.divergence(2, batch, logits)) <= said + 1e-6
        own = teacher(batch["input_ids"]).logits
        assert float(few.divergence(2, batch, own)) == pytest.approx(0, abs=1e-5)


def test_learning_from_a_file_is_learning_from_the_model(tmp_path):
    options = options_for(3)
    store_teacher(routed_model(), windows_for(options), tmp_path / "words", top=VOCABULARY)
    models = []
    for teacher in (routed_model(), StoredTeacher(tmp_path / "words")):
        student = dense_model()
        distill(student, teacher, windows_for(options), options, tmp_path / f"work{len(models)}")
        models.append(student)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(first, second, atol=1e-3)


def test_resumed_it_ends_with_the_same_bits(tmp_path):
    options = options_for(4, save_every=2)
    whole, broken = dense_model(), dense_model()
    distill(whole, routed_model(), windows_for(options), options, tmp_path / "whole")

    def stop(step, steps, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(broken, routed_model(), windows_for(options), options, tmp_path / "broken", progress=stop)
    again = dense_model()
    distill(again, routed_model(), windows_for(options), options, tmp_path / "broken", resume=True)
    assert same_bits(weights_of(again), weights_of(whole))


def test_what_cannot_be_taught(tmp_path):
    options, student = options_for(2), dense_model()
    data = windows_for(options)
    with pytest.raises(OptionError, match="Load it twice"):
        distill(student, student, data, options, tmp_path)
    with pytest.raises(OptionError, match="kd_weight=-1"):
        distill(student, dense_model(), data, options, tmp_path, kd_weight=-1)
    with pytest.raises(OptionError, match="above 0"):
        distill(student, dense_model(), data, options, tmp_path, temperature=0)
    with pytest.raises(OptionError, match="one vocabulary"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(CheckpointError, match="not there"):
        StoredTeacher(tmp_path / "nowhere")
    (tmp_path / "other").write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="teacher's words"):
        StoredTeacher(tmp_path / "other")
    with pytest.raises(OptionError, match="at least 1"):
        store_teacher(student, data, tmp_path / "x", top=0)


def test_a_teacher_of_another_text_is_refused(tmp_path):
    options, student = options_for(2), dense_model()
    store_teacher(student, windows_for(options), tmp_path / "words")
    teacher = StoredTeacher(tmp_path / "words")
    with pytest.raises(OptionError, match="heard about 4 windows, and 10"):
        distill(student, teacher, windows_for(options_for(5)), options_for(5), tmp_path / "work")
    batch = batch_of(options)
    with pytest.raises(OptionError, match="another text"):
        teacher.divergence(1, batch, torch.zeros(2, LENGTH, VOCABULARY))
