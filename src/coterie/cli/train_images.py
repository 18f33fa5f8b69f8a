"""`coterie train RECIPE --images DATA`: a classifier of images that learns under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.named_values import named_value
from coterie.errors import OptionError

if TYPE_CHECKING:
    from coterie.cli.progress import Progress


def is_robust(what: str | None) -> bool:
    """Whether a recipe that ships is one of robust training; a file of that name goes first."""
    from coterie.training.adversarial.recipe import shipped_robust_recipes

    return what is not None and not Path(what).is_file() and what in shipped_robust_recipes()


def check_images_options(what: str | None, images: str | None, others: Mapping[str, Any]) -> None:
    """Refuse what goes with text alone.

    Raises:
        OptionError: names it.
    """
    if images is None:
        raise OptionError(
            f"Images are learned from: add --images DATA, a folder of class folders, an .npz, or digits:train, as in "
            f"coterie train {what or 'advmoe'} --images digits:train."
        )
    if what is None:
        raise OptionError(f"--images needs a recipe: coterie train advmoe --images {images}.")
    if given := [name for name, value in others.items() if value is not None]:
        raise OptionError(f"{', '.join(given)} go with text, not with --images. Leave them out.")


def train_on_images(
    what: str, images: str, out: Path, options: Sequence[str], changes: Mapping[str, Any], resume: bool,
    progress: Progress,
) -> str:  # fmt: skip
    """Train, and say in a sentence what came of it."""
    from coterie.training.adversarial.making import train_robust
    from coterie.training.adversarial.recipe import read_robust_recipe
    from coterie.training.adversarial.summary_page import COLLAPSED

    named = [(f"training.{name}" if name != "seed" else name, value) for name, value in changes.items()]
    changed = [(name, value) for name, value in named if value is not None]
    recipe = read_robust_recipe(what, [*changed, *(named_value(each, "attack.epsilon=4/255") for each in options)])
    outcome = train_robust(recipe, images, out, resume=resume, progress=progress.training, say=progress.say)
    judged = outcome.judged
    if judged is None:
        return f"Trained on {outcome.images} images; none were held back to judge by. See {out / 'report.html'}."
    told = (
        f"Of {outcome.held} images held back {judged.accuracy:.1%} are right, {judged.robust_accuracy:.1%} under "
        f"attack. See {out / 'report.html'}."
    )
    if judged.largest_share >= COLLAPSED:
        told += f" The router collapsed: one route has {judged.largest_share:.0%} of the images."
    return told
