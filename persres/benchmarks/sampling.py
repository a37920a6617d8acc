"""Pictures by the stage's own function beside diffusers' pipeline: the residual everywhere, and with LAG."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from persres.benchmarks.models import Measured, items_of
from persres.benchmarks.plain import plain_drawing
from persres.benchmarks.timing import alternated, flops, ratio
from persres.config import Drawing
from persres.residuals.bank import ResidualBank, find_targets
from persres.sampling.draw import Texts, draw
from persres.seeding import generator


def some_bank(measured: Measured) -> ResidualBank:
    """A residual of one concept with random factors."""
    unet, settings = measured.ours.unet, measured.settings
    targets = find_targets(unet, settings.rank_ratio, settings.rank, settings.target)
    bank = ResidualBank(targets).initialise(0, settings.init, settings.init_gain, generator("bench"))
    return bank.to(unet.device).requires_grad_(False)


def our_drawing(
    measured: Measured, bank: ResidualBank, batch: int, steps: int, lag: bool | str
) -> Callable[[], torch.Tensor]:
    """A batch of pictures, [n, 3, h, w]."""
    items, base = items_of(measured.base, batch), measured.base
    drawing = Drawing(variant="bench", lag=lag, steps=steps, images_per_prompt=1)
    texts = Texts(measured.ours)
    return lambda: draw(measured.ours, items, drawing, bank, base.resolution, texts=texts)[0]


def sampling_times(measured: Measured, steps: int, rounds: int, batches: tuple[int, ...]) -> dict[str, dict]:
    """By batch size: seconds of a picture, and ratios of ours to the base pipeline and of LAG to ours without."""
    bank, found = some_bank(measured), {}
    for batch in batches:
        ways = {
            "base pipeline": plain_drawing(measured, batch, steps, Drawing().cfg_scale),
            "ours": our_drawing(measured, bank, batch, steps, False),
            "lag": our_drawing(measured, bank, batch, steps, True),
            "lag auto": our_drawing(measured, bank, batch, steps, "auto"),
        }
        taken = alternated(ways, rounds, measured.device)
        found[str(batch)] = {
            "steps": steps,
            "picture_s": {name: round(statistics.median(s) / batch, 5) for name, s in taken.items()},
            "gflop": round(flops(ways["ours"]) / batch / 1e9, 3),
            "of_base": round(ratio(taken["ours"], taken["base pipeline"]), 3),
            "lag_of_ours": round(ratio(taken["lag"], taken["ours"]), 3),
            "lag_of_base": round(ratio(taken["lag"], taken["base pipeline"]), 3),
            "lag_auto_of_ours": round(ratio(taken["lag auto"], taken["ours"]), 3),
        }
    return found
