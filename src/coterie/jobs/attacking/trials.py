"""What the checks need to know, measured: the same twice, alone, more steps, larger balls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coterie.errors import AttackError, NoGradientError
from coterie.jobs.attacking import checks
from coterie.jobs.attacking.checks import Check
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.ways import Record, Scene
from coterie.models.vision.saving import not_finite
from coterie.training.adversarial import Aim, Attack, perturb

__all__ = [
    "CHECKED",
    "LOOKS",
    "Trials",
    "require_finite_answers",
    "require_finite_weights",
    "second_look",
    "steps_points",
    "tried",
]

CHECKED = 100  # images that the checks with attacks of their own look at
_AIMS: tuple[Aim, ...] = ("ce", "margin")  # attacks on the whole model
_SOME, LOOKS = 8, 10  # images that are looked at one by one; starts for what only a search broke
_WIDER = (0.25, 0.5, 2.0, 4.0)  # times epsilon
_UNBOUNDED_STEPS, _UNBOUNDED_STEP = 50, 0.1


@dataclass(frozen=True, eq=False)
class Trials:
    """Checks, and the curve that belongs to them."""

    checks: list[Check]
    epsilon_curve: list[tuple[float, float]]
    checked: int


def require_finite_weights(model: nn.Module) -> None:
    """Refuse to judge a model that holds NaN: every image would get the same answer, and no attack would move.

    Raises:
        AttackError: a weight or statistic is not a finite number.
    """
    if broken := not_finite([*model.named_parameters(), *model.named_buffers()]):
        raise AttackError(
            f"{broken[0]!r} of the model holds NaN or infinity: it would answer every image alike, and look robust. "
            "Take an earlier checkpoint, or train it anew with a lower rate."
        )


def require_finite_answers(loss: Tensor) -> None:
    """Refuse to judge a model whose ``loss [N]`` is not finite before any attack.

    Raises:
        AttackError: it is not.
    """
    bad = int((~torch.isfinite(loss)).sum())
    if bad:
        raise AttackError(
            f"The loss of {bad} of {len(loss)} images is no finite number before any attack. Look for values in the "
            "model that overflow."
        )


def tried(scene: Scene, threat: Threat, broken: Tensor, say: Callable[[str], None]) -> Trials:
    """Run the checks that need forwards or attacks of their own.

    Args:
        scene: all images; the first `CHECKED` are looked at.
        threat: what the attacker may do.
        broken: [N] bool, images that the two gradient attacks on the whole model break, with the starts they had.
        say: told what is looked at.
    """
    some = Scene(
        scene.victim, scene.images[:CHECKED], scene.labels[:CHECKED],
        scene.victim.answers(scene.images[:CHECKED], scene.labels[:CHECKED]),
    )  # fmt: skip
    right = (some.clean.predicted == some.labels).nonzero().flatten()
    made = [finite(some), repeatable(some), alone(some), gradients(some, threat, right)]
    say("Checking: an attack without bounds")
    left = right
    for aim in _AIMS:
        free = Attack(1.0, _UNBOUNDED_STEPS, _UNBOUNDED_STEP, restarts=2, aim=aim, keep="worst")
        left = _left(some, left, free, threat.seed)
    made.append(checks.unbounded(len(left), len(right), 1.0))
    say("Checking: smaller and larger balls")
    curve = list(_over_epsilon(some, threat, right, broken[:CHECKED], len(left)))
    made.append(checks.epsilon_matters(curve, len(some.labels)))
    return Trials(made, curve, len(some.labels))


def second_look(scene: Scene, threat: Threat, numbers: Tensor) -> int:
    """How many of the images ``numbers``, which a search broke and no gradient did, gradients break after all.

    A few images of many are bad luck of the starts; where the gradient is hidden, no start helps.
    """
    some = numbers[:CHECKED]
    left = some
    for aim in _AIMS:
        more = Attack(threat.epsilon, threat.steps, threat.step, restarts=LOOKS, aim=aim, keep="worst")
        left = _left(scene, left, more, threat.seed + 2)
    return len(some) - len(left)


def finite(scene: Scene) -> Check:
    """Weights, statistics and answers; `require_finite_weights` and `require_finite_answers` have let them through."""
    return checks.finite(scene.clean.loss.tolist())


def repeatable(scene: Scene) -> Check:
    """The same batch twice."""
    first, second = (scene.victim.see(scene.images) for _ in range(2))
    return checks.repeatable(*_apart(first, second), float(first[0].abs().max()))


def alone(scene: Scene) -> Check:
    """Some images one by one, and within the batch."""
    batch = scene.victim.see(scene.images)
    each = [scene.victim.see(scene.images[at : at + 1]) for at in range(min(_SOME, len(scene.labels)))]
    count, routed = len(each), batch[1] is not None
    one = (
        torch.cat([logits for logits, _ in each]),
        torch.cat([r for _, r in each if r is not None]) if routed else None,
    )
    within = batch[0][:count], None if batch[1] is None else batch[1][:count]
    return checks.alone(*_apart(within, one), float(batch[0].abs().max()))


def gradients(scene: Scene, threat: Threat, right: Tensor) -> Check:
    """At the clean images that are answered right: those where the loss is flat to the last bit."""
    peaks: list[Tensor] = []
    look = Attack(threat.epsilon, 1, threat.step, start="none", aim="ce")
    for part in right.split(scene.victim.batch) if len(right) else ():
        images, labels = scene.images[part].to(scene.victim.device), scene.labels[part].to(scene.victim.device)
        try:
            perturb(scene.victim.model, images, labels, look, watch=lambda step, value, peak: peaks.append(peak.cpu()))
        except NoGradientError:
            peaks.append(torch.zeros(len(part)))
    without = sum(int((peak == 0).sum()) for peak in peaks)
    return checks.gradients(without, len(right))


def steps_points(scene: Scene, record: Record) -> list[tuple[int, float]]:
    """(steps, mean loss) of the end-to-end attack on images that are right when clean; [] without any."""
    right = scene.clean.predicted == scene.labels
    if not bool(right.any()):
        return []
    clean = float(scene.clean.loss[right].mean())
    seen = [(step, loss) for step, loss in record.curve() if step > 0]
    steps = len(seen)
    wanted = sorted({1, *(max(1, steps * part // 10) for part in (1, 3, 5)), steps}) if steps else []
    return [(0, clean), *(seen[step - 1] for step in wanted)]


def _over_epsilon(
    scene: Scene, threat: Threat, right: Tensor, broken: Tensor, unbounded: int
) -> Iterator[tuple[float, float]]:
    """(epsilon, accuracy), ascending from 0."""
    count = len(scene.labels)
    points = {0.0: len(right), threat.epsilon: int((~broken[right]).sum()), 1.0: unbounded}
    for times in _WIDER:
        epsilon = threat.epsilon * times
        if epsilon < 1:
            step = epsilon * threat.step / threat.epsilon
            attack = Attack(epsilon, threat.steps, step, aim="margin", keep="worst")
            points[epsilon] = len(_left(scene, right, attack, threat.seed))
    yield from ((epsilon, left / count) for epsilon, left in sorted(points.items()))


def _left(scene: Scene, numbers: Tensor, attack: Attack, seed: int) -> Tensor:
    """Those of the images ``numbers`` that ``attack`` does not break."""
    left = [numbers[:0]]
    for part in numbers.split(scene.victim.batch) if len(numbers) else ():
        images, labels = scene.images[part].to(scene.victim.device), scene.labels[part]
        try:
            found = perturb(
                scene.victim.model, images, labels.to(images.device), attack, seed=seed, index=part.to(images.device)
            )
        except NoGradientError:
            found = images
        left.append(part[scene.victim.see(found)[0].argmax(-1) == labels])
    return torch.cat(left)


def _apart(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> tuple[float, int]:
    """(largest difference of logits, images with another route)."""
    moved = 0 if one[1] is None or other[1] is None else int((one[1] != other[1]).any(1).sum())
    return float((one[0] - other[0]).abs().max()), moved
