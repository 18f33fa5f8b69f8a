"""Attacks of the Adversarial Robustness Toolbox on a model of ours: an oracle for our own, and stronger ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coterie.errors import AttackError, MissingExtraError
from coterie.jobs.attacking.outcome import Kind
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.victim import Victim
from coterie.jobs.attacking.ways import Change, Record, Way

__all__ = ["art_ways", "require_art"]

# as in AutoAttack's standard version (Croce and Hein 2020)
_ITERATIONS, _QUERIES = 100, 5000
_LEAST_FOR_RATIO = 3  # classes that the ratio of differences of logits needs


def require_art() -> None:
    """Refuse early where the toolbox is not there.

    Raises:
        MissingExtraError: it is not.
    """
    for module in ("art", "sklearn", "multiprocess"):
        if find_spec(module) is None:
            raise MissingExtraError("The Adversarial Robustness Toolbox (art)", extra="attacks")


def art_ways(victim: Victim, threat: Threat, classes: int) -> list[Way]:
    """Two rows: the toolbox's projected gradient with our budget, and AutoAttack.

    The toolbox gets a copy of the model, since it clears gradients and sets modes as it pleases.

    Raises:
        MissingExtraError: the toolbox is not installed.
    """
    require_art()
    steps = threat.steps * threat.restarts + 1
    square = _QUERIES // 4  # what falls early is not asked again
    return [
        Way("art-pgd", "ART: PGD", "the toolbox's projected gradient, same budget", Kind.ATTACK,
            _with_art(victim, threat, classes, _pgd), passes=steps),
        Way("art-autoattack", "ART: AutoAttack", "APGD on two losses, then Square (no FAB, no targets)", Kind.ATTACK,
            _with_art(victim, threat, classes, _autoattack), passes=2 * _ITERATIONS + square),
    ]  # fmt: skip


def _with_art(victim: Victim, threat: Threat, classes: int, make: Any) -> Change:
    model: list[nn.Module] = []  # copied when it is needed first, in the mode it has then

    def change(images: Tensor, labels: Tensor, numbers: Tensor, record: Record) -> Tensor:
        if not model:
            model.append(copy.deepcopy(victim.model).eval())
        attack = make(_classifier(model[0], images, classes), threat, len(images))
        with _seeded(threat.seed + int(numbers[0])), torch.enable_grad():
            try:
                found = attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())
            except (ValueError, AssertionError, IndexError) as error:
                raise AttackError(
                    f"The Adversarial Robustness Toolbox cannot attack this model ({error}). Leave --art out."
                ) from error
        # the toolbox adds and clips in its own order, which leaves a rounding error beyond the ball
        near = torch.from_numpy(np.asarray(found, dtype=np.float32)).to(images.device)
        return near.clamp(images - threat.epsilon, images + threat.epsilon).clamp(0, 1)

    return change


def _classifier(model: nn.Module, images: Tensor, classes: int) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=classes,
        clip_values=(0.0, 1.0), device_type="gpu" if images.is_cuda else "cpu",
    )  # fmt: skip


def _pgd(classifier: Any, threat: Threat, batch: int) -> Any:
    from art.attacks.evasion import ProjectedGradientDescent

    return ProjectedGradientDescent(
        classifier, norm=np.inf, eps=threat.epsilon, eps_step=threat.step, max_iter=threat.steps,
        num_random_init=threat.restarts, batch_size=batch, verbose=False,
    )  # fmt: skip


def _autoattack(classifier: Any, threat: Threat, batch: int) -> Any:
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, SquareAttack

    losses = ["cross_entropy"]
    if classifier.nb_classes >= _LEAST_FOR_RATIO:
        losses.append("difference_logits_ratio")
    attacks: list[Any] = [
        AutoProjectedGradientDescent(
            classifier, norm=np.inf, eps=threat.epsilon, eps_step=2 * threat.epsilon, max_iter=_ITERATIONS,
            nb_random_init=1, batch_size=batch, loss_type=loss, verbose=False,
        )
        for loss in losses
    ]  # fmt: skip
    height, width = classifier.input_shape[1:]
    # the toolbox cannot place a square as large as the image
    share = min(0.8, (min(height, width) - 1) ** 2 / (height * width))
    if share > 0:
        attacks.append(
            SquareAttack(
                classifier, norm=np.inf, eps=threat.epsilon, max_iter=_QUERIES, p_init=share, nb_restarts=1,
                batch_size=batch, verbose=False,
            )
        )  # fmt: skip
    return AutoAttack(
        classifier, norm=np.inf, eps=threat.epsilon, eps_step=2 * threat.epsilon, attacks=attacks, batch_size=batch
    )  # fmt: skip


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The toolbox draws from numpy's global state, which is as before afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
