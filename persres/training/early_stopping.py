"""Decides when a concept may stop training before its last step (docs/extensions/early_stopping.md; the paper always runs 150 steps, 4.1).

The loss of a single step is noisy, since noise and timesteps change with every step. So every ``early_stop_every`` steps, a check
computes the loss of the photos at ``early_stop_draws`` fixed noises and timesteps, in one U-Net pass. It compares the change since
the check before with the total decrease. The concept stops when that share is below ``early_stop_below``. A loss that rises by
more than the threshold does not stop training: at a constant learning rate it may jump and then decrease again.

A check depends only on the concept's name, photos and factors. In a batch, a concept stops at the same step as alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from persres.residuals.bank import ResidualBank
from persres.seeding import generator
from persres.training.settings import ResidualSettings


def fixed_draws(
    name: str, mean: torch.Tensor, settings: ResidualSettings, timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise and timesteps of a concept's check, [draws, ...]; the same at every check.

    ``mean`` [n, c, h, w] of its photos, which take turns. The timesteps are the midpoints of equal intervals.
    """
    draws = torch.arange(settings.early_stop_draws)
    rows = torch.tensor(fixed_photos(len(mean), settings)).to(mean.device)
    noise = torch.randn((len(draws), *mean.shape[1:]), generator=generator("settle", name, settings.seed))
    return mean[rows], noise, ((draws + 0.5) * timesteps / len(draws)).long()


def fixed_photos(count: int, settings: ResidualSettings) -> list[int]:
    """The photos of a concept's check, which take turns, [draws]."""
    return [draw % count for draw in range(settings.early_stop_draws)]


def relative_change(losses: list[float]) -> float:
    """The change of the loss between the last two checks, as a share of its total decrease; 1 before any decrease."""
    gain = losses[0] - losses[-1]
    return abs(losses[-2] - losses[-1]) / gain if len(losses) > 1 and gain > 0 else 1.0


@dataclass
class EarlyStopping:
    """Tracks which concepts of a bank still train.

    ``measure`` returns a concept's current loss at its fixed draws. ``losses`` by concept: before the first step, then at every
    check. ``frozen``: the factors of stopped concepts. :meth:`restore` puts them back after every optimizer step, since
    momentum and weight decay move them even without a gradient.
    """

    settings: ResidualSettings
    bank: ResidualBank
    measure: Callable[[int], float]
    losses: list[list[float]] = field(default_factory=list)
    frozen: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def begin(self, state: dict | None) -> None:
        """Start from the :meth:`state` of a checkpoint whose bank is loaded, or from the first step."""
        if self.settings.stop == "steps":
            return
        if state is None:
            self.losses = [[self.measure(concept)] for concept in range(self.bank.concepts)]
        else:
            self.losses = [list(losses) for losses in state["losses"]]
            self._freeze(state["stopped"])

    def state(self) -> dict:
        """The state, for JSON."""
        return {"losses": self.losses, "stopped": sorted(self.frozen)}

    @property
    def active(self) -> list[int]:
        """The concepts that have not stopped, in order."""
        return [concept for concept in range(self.bank.concepts) if concept not in self.frozen]

    def _freeze(self, concepts: list[int]) -> None:
        for concept in concepts:
            self.frozen[concept] = [factor[concept].detach().clone() for factor in self.bank.parameters()]

    @torch.no_grad()
    def restore(self) -> None:
        """Reset the factors of stopped concepts after an optimizer step."""
        for concept, factors in self.frozen.items():
            for factor, value in zip(self.bank.parameters(), factors, strict=True):
                factor[concept].copy_(value)

    def check(self, steps: int) -> dict[str, list]:
        """The log entries after ``steps`` steps, by concept: ``fixed_loss``, and ``stopped`` with the reason if one stops here.

        Empty if no check is due. After the last step none is.
        """
        settings = self.settings
        if settings.stop == "steps" or steps % settings.early_stop_every or steps >= settings.steps:
            return {}
        losses: list[float | None] = [None] * self.bank.concepts
        reasons: list[str | None] = [None] * self.bank.concepts
        for concept in self.active:
            losses[concept] = self.measure(concept)
            self.losses[concept].append(losses[concept])
            reasons[concept] = self._reason(self.losses[concept], steps)
        self._freeze([concept for concept, reason in enumerate(reasons) if reason])
        return {"fixed_loss": losses} | ({"stopped": reasons} if any(reasons) else {})

    def _reason(self, losses: list[float], steps: int) -> str | None:
        """Why the concept stops after ``steps`` steps, or None."""
        share, every = relative_change(losses), self.settings.early_stop_every
        if share >= self.settings.early_stop_below:
            return None
        return f"stopped after {steps} steps: in the last {every} the loss changed by {share:.1%} of its total decrease"
