"""Sampling against diffusers' pipeline: the residual everywhere, and with LAG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from persres.config.schema import SamplingConfig
from persres.experiments.benchmarks.models import Measured, image_specs
from persres.experiments.benchmarks.plain import plain_sampling
from persres.experiments.benchmarks.timing import alternated, flops, formatted
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.sampling.sample import PromptCache, Request, sample_batch
from persres.seeding import generator


def some_bank(measured: Measured) -> ResidualBank:
    """Return a residual of one concept with random factors."""
    unet, settings = measured.ours.unet, measured.settings
    targets = find_targets(unet, settings.rank_ratio, settings.rank, settings.target)
    bank = ResidualBank(targets).initialise(0, settings.init, settings.init_gain, generator("bench"))
    return bank.to(unet.device).requires_grad_(False)


def our_sampling(
    measured: Measured, bank: ResidualBank, batch: int, steps: int, lag: bool | str
) -> Callable[[], torch.Tensor]:
    """Return a run that samples a batch of images [n, 3, h, w]."""
    specs, base = image_specs(measured.base, batch), measured.base
    sampling = SamplingConfig(variant="bench", lag=lag, steps=steps, images_per_prompt=1)
    texts = PromptCache(measured.ours)
    return lambda: sample_batch(measured.ours, [Request(specs, sampling, bank)], base.resolution, texts)[0][0]


AGAINST = {"ours": ("base pipeline",), "lag": ("base pipeline", "ours"), "lag auto": ("base pipeline", "ours")}


def sampling_times(measured: Measured, steps: int, rounds: int, batches: tuple[int, ...]) -> dict[str, dict]:
    """Return by batch size the seconds of an image, and the ratios of ours to the base pipeline and of LAG to ours without."""
    bank, result = some_bank(measured), {}
    for batch in batches:
        contestants = {
            "base pipeline": plain_sampling(measured, batch, steps, SamplingConfig().cfg_scale),
            "ours": our_sampling(measured, bank, batch, steps, False),
            "lag": our_sampling(measured, bank, batch, steps, True),
            "lag auto": our_sampling(measured, bank, batch, steps, "auto"),
        }
        facts = {"steps": steps, "gflop": round(flops(contestants["ours"]) / batch / 1e9, 3)}
        result[str(batch)] = facts | formatted(alternated(contestants, rounds, measured.device), AGAINST, batch)
    return result


def batched_times(measured: Measured, steps: int, rounds: int, concepts: int) -> dict:
    """Return the seconds of an image of each of several concepts, all in one batch and one by one, without and with LAG."""
    contestants, against = {}, {}
    for lag, suffix in ((False, ""), (True, ", LAG")):
        sampling = SamplingConfig(variant="bench", lag=lag, steps=steps, images_per_prompt=1)
        requests = [Request(image_specs(measured.base, 1), sampling, some_bank(measured)) for _ in range(concepts)]
        contestants[f"one by one{suffix}"] = partial(_one_by_one, measured, requests)
        contestants[f"in one batch{suffix}"] = partial(sample_batch, measured.ours, requests, measured.base.resolution)
        against[f"in one batch{suffix}"] = (f"one by one{suffix}",)
    taken = alternated(contestants, rounds, measured.device)
    return {"steps": steps, "concepts": concepts} | formatted(taken, against, concepts)


def _one_by_one(measured: Measured, requests: list[Request]) -> None:
    for one in requests:
        sample_batch(measured.ours, [one], measured.base.resolution)
