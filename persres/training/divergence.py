"""Stops a training that has left the finite numbers, before its weights reach a checkpoint or a finished unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from persres.errors import PersresError


class DivergedError(PersresError):
    """The loss or the weights of ``concepts`` are no finite numbers; running again would give the same."""

    def __init__(self, concepts: Iterable[str], what: str, at: str) -> None:
        self.concepts = tuple(concepts)
        super().__init__(f"training of {', '.join(self.concepts)} diverged: {what} {at}; set a smaller lr")


def step_and_rate(step: int, steps: int, lr: float | Mapping[str, float]) -> str:
    """Returns the words for a step, counted from 1, and its learning rate or rates."""
    rates = [lr] if isinstance(lr, int | float) else dict.fromkeys(lr.values())
    return f"at step {step} of {steps} with learning rate {', '.join(f'{rate:g}' for rate in rates)}"


def check_losses(losses: Mapping[str, float | None], at: str) -> None:
    """Raises DivergedError where a concept's loss is NaN or infinite; ``at`` is a :func:`step_and_rate`."""
    wrong = {name: loss for name, loss in losses.items() if loss is not None and not math.isfinite(loss)}
    if wrong:
        raise DivergedError(wrong, f"its loss is {next(iter(wrong.values()))}", at)


def check_weights(weights: Mapping[str, Iterable[torch.Tensor]], at: str) -> None:
    """Raises DivergedError where a concept's weights hold NaN or infinity."""
    wrong = [name for name, values in weights.items() if not all(bool(v.isfinite().all()) for v in values)]
    if wrong:
        raise DivergedError(wrong, "its weights hold NaN or infinity", at)
