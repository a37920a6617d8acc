"""Training against the baseline loops, and several concepts per batch against one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from persres.experiments.benchmarks.models import CLASS, Measured
from persres.experiments.benchmarks.plain import plain_training
from persres.experiments.benchmarks.timing import alternated, flops, formatted
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.seeding import generator
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank, train

PHOTOS = 5  # of one concept


def photos_of(measured: Measured) -> torch.Tensor:
    """Return noise in place of photos, [n, 3, h, w] in [-1, 1]; the time is the same."""
    side = measured.base.resolution
    return torch.rand((PHOTOS, 3, side, side), generator=generator("bench")) * 2 - 1


def encoded_concepts(measured: Measured, count: int) -> list[EncodedConcept]:
    """Return ``count`` concepts, each with its photos' posterior and its prompt."""
    ours = measured.ours
    mean, std = ours.posterior(photos_of(measured))
    text = ours.encode([f"a photo of a {measured.base.token} {CLASS}"])
    return [EncodedConcept(f"concept {i}", mean, std, text) for i in range(count)]


def bank_of(measured: Measured, concepts: list[EncodedConcept]) -> ResidualBank:
    """Return untrained residuals of the concepts."""
    unet, settings = measured.ours.unet, measured.settings
    targets = find_targets(unet, settings.rank_ratio, settings.rank, settings.target)
    return new_bank(targets, concepts, settings).to(unet.device)


def our_training(measured: Measured, steps: int, count: int = 1) -> Callable[[], None]:
    """Return a run of ``steps`` steps of ``count`` concepts per batch, by the function of the train stage."""
    ours, concepts = measured.ours, encoded_concepts(measured, count)
    bank, settings = bank_of(measured, concepts), measured.settings.model_copy(update={"steps": steps})
    return lambda: train(ResidualLoss(ours.unet, ours.scheduler, bank, settings), concepts)


def step_flops(measured: Measured, count: int = 1) -> int:
    """Return the operations of one step of ``count`` concepts, forward and backward."""
    ours, concepts = measured.ours, encoded_concepts(measured, count)
    bank = bank_of(measured, concepts)
    loss = ResidualLoss(ours.unet, ours.scheduler, bank, measured.settings)
    return flops(lambda: loss.at_step(concepts, 0).sum().backward())


def training_times(measured: Measured, steps: int, rounds: int, counts: tuple[int, ...]) -> dict:
    """Return seconds of a step of one concept, and ratios.

    ``plain`` and ``cached``: the loops of :mod:`persres.experiments.benchmarks.plain`; ``<k> concepts``: a step of k concepts over k.
    """
    photos = photos_of(measured)
    batched = {f"{k} concepts": our_training(measured, steps, k) for k in counts}
    contestants = {
        "ours": our_training(measured, steps),
        "plain": plain_training(measured, photos, steps, cached=False),
        "cached": plain_training(measured, photos, steps, cached=True),
    } | batched
    taken = alternated(contestants, rounds, measured.device)
    for k in counts:
        taken[f"{k} concepts"] = [s / k for s in taken[f"{k} concepts"]]
    against = {"ours": ("plain", "cached"), "cached": ("plain",)} | dict.fromkeys(batched, ("plain", "cached", "ours"))
    facts = {"steps": steps, "batch": measured.settings.batch_size, "gflop": round(step_flops(measured) / 1e9, 3)}
    return facts | formatted(taken, against, steps)
