"""When a concept may stop learning before its steps are up (docs/beyond.md, "When to stop"; the paper always takes 150, 4.1).

The loss of a step says little: its noise and timesteps are other ones each time. So every ``early_stop_every`` steps the loss of the
photos is taken at ``early_stop_draws`` fixed noises and timesteps, in one forward pass, and what it moved by since the check before is compared
with what it fell by in all. Once the share is below ``early_stop_below``, the concept has settled. Nothing is asked but the photos. A loss
that rises by more than that has not settled: at a constant rate it may jump and fall on, as one of the looks does that this was tuned on.

A concept's checks depend on its own name, photos and factors alone: beside others it stops where it would alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from persres.residuals.bank import ResidualBank
from persres.seeding import generator
from persres.training.settings import ResidualSettings


def fixed_draw(
    name: str, mean: torch.Tensor, settings: ResidualSettings, timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise and timesteps of a concept's check, the same at every check, [draws, ...].

    ``mean`` [n, c, h, w] of its photos. The timesteps are the middles of as many equal parts of all; the photos take turns.
    """
    draws = torch.arange(settings.early_stop_draws)
    rows = (draws % len(mean)).to(mean.device)
    noise = torch.randn((len(draws), *mean.shape[1:]), generator=generator("settle", name, settings.seed))
    return mean[rows], noise, ((draws + 0.5) * timesteps / len(draws)).long()


def share_moved(losses: list[float]) -> float:
    """What the loss moved by, up or down, between the last two of its checks, as a share of its fall since the first. 1 before it has
    fallen at all."""
    gain = losses[0] - losses[-1]
    return abs(losses[-2] - losses[-1]) / gain if len(losses) > 1 and gain > 0 else 1.0


@dataclass
class EarlyStopping:
    """Which concepts of a bank still learn.

    ``measure`` gives a concept's loss at its fixed draws now. ``losses`` by concept: before the first step, then at every check.
    ``held``: the factors of those that have stopped, put back after every step, for the optimizer's momentum and decay move
    them without a gradient too.
    """

    settings: ResidualSettings
    bank: ResidualBank
    measure: Callable[[int], float]
    losses: list[list[float]] = field(default_factory=list)
    held: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def begin(self, state: dict | None) -> None:
        """From a checkpoint's :meth:`state`, with the bank as it was then; none: from the start."""
        if self.settings.stop == "steps":
            return
        if state is None:
            self.losses = [[self.measure(concept)] for concept in range(self.bank.concepts)]
        else:
            self.losses = [list(losses) for losses in state["losses"]]
            self._hold(state["stopped"])

    def state(self) -> dict:
        """As JSON can hold it."""
        return {"losses": self.losses, "stopped": sorted(self.held)}

    @property
    def learning(self) -> list[int]:
        """The concepts that have not stopped, in order."""
        return [concept for concept in range(self.bank.concepts) if concept not in self.held]

    def _hold(self, concepts: list[int]) -> None:
        for concept in concepts:
            self.held[concept] = [factor[concept].detach().clone() for factor in self.bank.parameters()]

    @torch.no_grad()
    def put_back(self) -> None:
        """After a step of the optimizer: what has stopped stays as it was."""
        for concept, factors in self.held.items():
            for factor, value in zip(self.bank.parameters(), factors, strict=True):
                factor[concept].copy_(value)

    def check(self, finished: int) -> dict[str, list]:
        """After ``finished`` steps, for the log, by concept: ``fixed_loss``, and in ``stopped`` why, where one stops here. Empty where
        no check is due: after the last step there is nothing to stop."""
        settings = self.settings
        if settings.stop == "steps" or finished % settings.early_stop_every or finished >= settings.steps:
            return {}
        found: list[float | None] = [None] * self.bank.concepts
        why: list[str | None] = [None] * self.bank.concepts
        for concept in self.learning:
            found[concept] = self.measure(concept)
            self.losses[concept].append(found[concept])
            share = share_moved(self.losses[concept])
            if share < self.settings.early_stop_below:
                why[concept] = (
                    f"settled after {finished} steps: the loss moved by {share:.1%} of its fall in the last {self.settings.early_stop_every}"
                )
        self._hold([concept for concept, said in enumerate(why) if said])
        return {"fixed_loss": found} | ({"stopped": why} if any(why) else {})
