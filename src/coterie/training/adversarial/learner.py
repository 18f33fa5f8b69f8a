"""The optimisers of experts and router on accelerate: rates, mixed precision, updates that are checked first."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.training.adversarial.options import Descent, RobustOptions, RouterNorm

Side = Literal["experts", "router"]
SIDES: tuple[Side, ...] = ("experts", "router")


class Learner:
    """Moves the parameters of either side, and nothing else. The model goes to the accelerator's device.

    Args:
        model: a `coterie.models.vision.VisionModel`.
        options: rates and precision.
        steps: of the whole training.

    Raises:
        MissingExtraError: accelerate is not installed.
        OptionError: the precision is not to be had on this device, or there are several processes.
    """

    def __init__(self, model: Any, options: RobustOptions, steps: int) -> None:
        self.accelerator = _accelerator(options.precision)
        self.device = torch.device(self.accelerator.device)
        self.steps = steps
        model.to(self.device)
        sides = {"experts": model.expert_parameters(), "router": model.router_parameters()}
        how: Mapping[str, Descent] = {"experts": options.experts, "router": options.router or options.experts}
        self._descents = {side: how[side] for side in SIDES if sides[side]}
        self._optimizers = {side: how[side].optimizer(sides[side]) for side in self._descents}

    @property
    def sides(self) -> tuple[Side, ...]:
        """Those that have parameters."""
        return tuple(side for side in SIDES if side in self._optimizers)

    def autocast(self) -> AbstractContextManager[None]:
        """Forwards within compute in the precision of the options."""
        return self.accelerator.autocast()

    def forget(self, sides: Sequence[Side] = SIDES) -> None:
        """Drop the gradients of ``sides``."""
        for side in sides:
            if side in self._optimizers:
                self._optimizers[side].zero_grad(set_to_none=True)

    def descend(self, loss: Tensor, sides: Sequence[Side], step: int) -> float:
        """One update of ``sides`` against ``loss``; the norm of the gradient. The other side keeps its bits.

        Raises:
            TrainingError: loss or gradient is not finite; nothing was moved.
        """
        if not math.isfinite(value := float(loss.detach())):
            raise TrainingError(f"The loss became {value}.")
        sides = [side for side in sides if side in self._optimizers]
        self.forget()
        self.accelerator.backward(loss)
        norm = self._checked_norm(sides)
        for side in sides:
            for group in self._optimizers[side].param_groups:
                group["lr"] = self._descents[side].rate_at(step, self.steps)
            self._step(self._optimizers[side])
        if self._scaler is not None:
            self._scaler.update()
        self.forget()  # the straight-through gradients of the other side are nobody's
        return norm

    def rates(self, step: int) -> dict[str, float]:
        """Side -> rate at ``step``."""
        return {f"{side}_rate": descent.rate_at(step, self.steps) for side, descent in self._descents.items()}

    def state(self) -> dict[str, Any]:
        """What an exact continuation needs."""
        states: dict[str, Any] = {side: optimizer.state_dict() for side, optimizer in self._optimizers.items()}
        return states if self._scaler is None else states | {"scaler": self._scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        for side, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[side])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    @property
    def _scaler(self) -> Any:
        return self.accelerator.scaler

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)  # leaves out an update whose scaled gradient overflowed

    def _checked_norm(self, sides: Sequence[Side]) -> float:
        gradients = [
            parameter.grad
            for side in sides
            for group in self._optimizers[side].param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = float(nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if self._scaler is not None:
            return norm / float(self._scaler.get_scale())
        if not math.isfinite(norm):
            raise TrainingError(f"The norm of the gradient became {norm}, at a finite loss.")
        return norm


@contextmanager
def learning(model: Any, sides: Sequence[Side], norms: RouterNorm = "running") -> Iterator[None]:
    """Train mode and gradients for ``sides``; eval mode and none for the other. Afterwards all parts are in train mode.

    So a phase leaves the weights of the other side alone, and its running statistics too, unless they are "moving".

    Args:
        model: a `coterie.models.vision.VisionModel`. Mutated meanwhile.
        sides: who learns.
        norms: what the experts' batch norms go by where only the router learns; see `RobustOptions.router_norm`.
    """
    router = model.router_parameters()
    still = [*([] if "router" in sides else router), *([] if "experts" in sides else model.expert_parameters())]
    still = [parameter for parameter in still if parameter.requires_grad]
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for parameter in still:
            parameter.requires_grad_(False)
        model.train("experts" in sides or norms != "running")
        for module in model.router_modules():
            module.train("router" in sides)
        if norms == "batch" and "experts" not in sides:
            own = {id(buffer) for module in model.router_modules() for buffer in module.buffers()}
            kept = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in own]
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        for parameter in still:
            parameter.requires_grad_(True)
        model.train()


def _accelerator(precision: str) -> Any:
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", extra="vision")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one of another precision may be left in this process
    accelerator = Accelerator(mixed_precision=precision)
    if precision == "fp16" and torch.device(accelerator.device).type != "cuda":
        raise OptionError("precision='fp16' needs a GPU, and there is none. Write 'bf16', or 'no'.")
    if accelerator.num_processes > 1:
        raise OptionError("Robust training runs in one process on one device. Start it without accelerate launch.")
    return accelerator
