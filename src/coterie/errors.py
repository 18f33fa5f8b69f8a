"""Every error a user of Coterie can meet, drawn once.

    CoterieError              something the user can mend; its text carries the remedy
    ├── OptionError           an option or argument has a value that is not allowed
    │   └── BudgetError       a memory budget that does not parse, is below the floor, above the machine
    ├── CheckpointError       a model directory that is missing, not a checkpoint, truncated or lying
    │   └── ChecksumError     bytes that changed under us
    ├── UnsupportedError      a family, format or platform Coterie does not serve (yet)
    ├── PromptError           an empty prompt, or one longer than the context
    ├── RoutingError          a routing decision that breaks the contract of `coterie.routing`
    ├── StoreError            the store was closed, a deadline passed, a read failed
    ├── TrainingError         a loss that is not a number
    ├── AttackError           an attack that cannot work on this model, so that it would look robust
    │   └── NoGradientError   because its gradient is zero everywhere
    └── MissingExtraError     an optional dependency is not installed

`assert` is for our own invariants; these are for everybody else. The command line prints the text
alone and exits with `exit_code`, never with a traceback.
"""

from __future__ import annotations


class CoterieError(Exception):
    """Root of the tree. Its text is one sentence of what is wrong and one of what to do."""

    exit_code = 1


class OptionError(CoterieError, ValueError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class BudgetError(OptionError):
    """A memory budget that does not parse, is below the floor or above the machine."""


class CheckpointError(CoterieError):
    """A model directory that is missing, is no checkpoint, is truncated or contradicts itself."""

    exit_code = 3


class ChecksumError(CheckpointError):
    """Bytes on disk are not those that were there when the checkpoint was opened."""


class UnsupportedError(CoterieError):
    """A model family, storage format or platform that Coterie does not serve."""

    exit_code = 4


class PromptError(CoterieError, ValueError):
    """An empty prompt, or one longer than the model's context."""

    exit_code = 2


class RoutingError(CoterieError, ValueError):
    """A routing decision that breaks the contract of `coterie.routing.Routing`."""


class StoreError(CoterieError, RuntimeError):
    """The store was closed, a deadline passed, or a read failed for good."""


class TrainingError(CoterieError, RuntimeError):
    """Training cannot go on: the loss is not a finite number."""


class AttackError(CoterieError, RuntimeError):
    """An attack cannot work here: its gradient is not finite, or zero. Accuracy under it would mean nothing."""


class NoGradientError(AttackError):
    """The gradient is zero for every image: the attack would stand still. Another one may work."""


class MissingExtraError(CoterieError, ImportError):
    """An optional dependency is needed and not installed.

    >>> str(MissingExtraError("FastAPI", extra="serve"))
    "FastAPI is not installed. Type: pip install 'coterie[serve]'"
    """

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} is not installed. Type: pip install 'coterie[{extra}]'")
