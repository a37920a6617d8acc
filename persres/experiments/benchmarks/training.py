"""Training beside the plain loops, and concepts in one pass beside the same number one after another."""

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
    """Noise in place of photos, [n, 3, h, w] in [-1, 1]: its time is the same."""
    side = measured.base.resolution
    return torch.rand((PHOTOS, 3, side, side), generator=generator("bench")) * 2 - 1


def encoded_concepts(measured: Measured, count: int) -> list[EncodedConcept]:
    """As many concepts, each with its photos' posterior and its prompt."""
    ours = measured.ours
    mean, std = ours.posterior(photos_of(measured))
    text = ours.encode([f"a photo of a {measured.base.token} {CLASS}"])
    return [EncodedConcept(f"concept {i}", mean, std, text) for i in range(count)]


def bank_of(measured: Measured, lessons: list[EncodedConcept]) -> ResidualBank:
    """Residuals of as many concepts, before their first step."""
    unet, settings = measured.ours.unet, measured.settings
    targets = find_targets(unet, settings.rank_ratio, settings.rank, settings.target)
    return new_bank(targets, lessons, settings).to(unet.device)


def our_training(measured: Measured, steps: int, count: int = 1) -> Callable[[], None]:
    """A run of some steps of as many concepts in one pass, by the function that the train stage calls."""
    ours, lessons = measured.ours, encoded_concepts(measured, count)
    bank, settings = bank_of(measured, lessons), measured.settings.model_copy(update={"steps": steps})
    return lambda: train(ResidualLoss(ours.unet, ours.scheduler, bank, settings), lessons)


def step_flops(measured: Measured, count: int = 1) -> int:
    """Of one step of as many concepts, forwards and backwards."""
    ours, lessons = measured.ours, encoded_concepts(measured, count)
    bank = bank_of(measured, lessons)
    loss = ResidualLoss(ours.unet, ours.scheduler, bank, measured.settings)
    return flops(lambda: loss.at_step(lessons, 0).sum().backward())


def training_times(measured: Measured, steps: int, rounds: int, together: tuple[int, ...]) -> dict:
    """Seconds of a step of one concept, and ratios. ``plain`` and ``cached``: the loops of :mod:`persres.experiments.benchmarks.plain`; ``<k> together``
    is a step of k concepts over k."""
    photos = photos_of(measured)
    many = {f"{k} together": our_training(measured, steps, k) for k in together}
    ways = {
        "ours": our_training(measured, steps),
        "plain": plain_training(measured, photos, steps, cached=False),
        "cached": plain_training(measured, photos, steps, cached=True),
    } | many
    taken = alternated(ways, rounds, measured.device)
    for k in together:
        taken[f"{k} together"] = [s / k for s in taken[f"{k} together"]]
    against = {"ours": ("plain", "cached"), "cached": ("plain",)} | dict.fromkeys(many, ("plain", "cached", "ours"))
    facts = {"steps": steps, "batch": measured.settings.batch_size, "gflop": round(step_flops(measured) / 1e9, 3)}
    return facts | formatted(taken, against, steps)
