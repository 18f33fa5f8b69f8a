"""Two experts and their router learn digits under attack, in turn (AdvMoE); then both are attacked."""

from pathlib import Path

import torch

from coterie.models.vision import VisionSpec, build_vision, save_vision
from coterie.training.adversarial import Attack, Descent, RobustLosses, RobustOptions, fit_robust, perturb
from coterie.training.images import split_digits

learn, measure = split_digits(two_domains=True)
spec = VisionSpec("small", channels=1, image_size=8, experts=2, ratio=0.5, router="small")
model = build_vision(spec, seed=0, init="torch")
options = RobustOptions(
    "alternating", epochs=5, batch=48, losses=RobustLosses(beta=1.0, drift=0.3, balance=1.0), augment=False,
    attack=Attack(0.1, 3, 0.05, start="gaussian", aim="kl+router"), router=Descent("adam", 1e-2),
)  # fmt: skip
fit_robust(model, learn, options, Path("work"))
images, labels = measure.batch(torch.arange(200))
attacked = perturb(model, images, labels, Attack(epsilon=0.1, steps=20, step_size=0.0125))
before, after = model.classify(images), model.classify(attacked)
right = [f"{(seen.logits.argmax(1) == labels).float().mean():.0%}" for seen in (before, after)]
routes = [seen.plan[model.sites[0]].expert for seen in (before, after)]
load, moved = routes[0].bincount().tolist(), int((routes[0] != routes[1]).sum())
print(f"{right[0]} right, {right[1]} under attack; images per expert {load}, of which the attack moved {moved}")
save_vision(model, "digits-of-experts")
