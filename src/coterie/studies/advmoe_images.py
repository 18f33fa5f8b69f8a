"""AdvMoE (arXiv 2308.10110) on images of the user's, such as a part of CIFAR-10: the longer study."""

from __future__ import annotations

import torch

from coterie.models.vision import VisionSpec
from coterie.studies import advmoe_learning
from coterie.studies.advmoe import CLAIMS, COLUMNS, arms
from coterie.studies.advmoe_data import LEARNED, Setting, images_of
from coterie.studies.claims import Metrics
from coterie.studies.study import Bench, Study

EPSILON = 8 / 255
_OF_DIGITS = {"d", "i", "j"}  # there are no two domains here, and what networks cost is told there


def setting(accelerated: bool) -> Setting:
    """The paper's ResNet-18 and attack where there is an accelerator, otherwise a quarter of its width, less long."""
    if accelerated:
        return Setting(
            dense=VisionSpec("resnet18"), epochs=30, batch=128, augment=True, epsilon=EPSILON, steps=10,
            step_size=2 / 255, measure_steps=50, measure_step_size=2 / 255, beta=6.0, drift=6.0,
        )  # fmt: skip
    return Setting(
        dense=VisionSpec("resnet18", width=0.25, router="resnet8", router_width=8), epochs=4, batch=64, augment=True,
        epsilon=EPSILON, steps=3, step_size=4 / 255, measure_steps=20, measure_step_size=2 / 255, beta=6.0, drift=6.0,
    )  # fmt: skip


SETTING = setting(torch.cuda.is_available())


def run(bench: Bench) -> Metrics:
    """Train one arm, attack it."""
    return advmoe_learning.run(bench, SETTING)


STUDY = Study(
    name="advmoe-images",
    paper="Robust Mixture-of-Expert Training for Convolutional Neural Networks (AdvMoE), arXiv 2308.10110",
    question="Experts of half the width, one per image, trained by turns of experts and router under attack, withstand "
    "more than the dense network: on photographs.",
    setting=f"up to {LEARNED:,} images of the user's to learn from and 500 to measure on, epsilon 8/255, TRADES with "
    "beta 6, crops and flips. With an accelerator: ResNet-18, 30 epochs, 10 steps of 2/255, measured with 50. Without: "
    "a quarter of its width and a small router, 4 epochs, 3 steps of 4/255, measured with 20 steps of 2/255.",
    arms=arms(LEARNED // SETTING.batch * SETTING.epochs),
    claims=tuple(claim for claim in CLAIMS if claim.key not in _OF_DIGITS), columns=COLUMNS, run=run,
    gather=images_of,
)  # fmt: skip
