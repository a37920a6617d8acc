"""The cost of LAG: batches with LAG and with the residual fused into the weights, alternating in one process."""

from __future__ import annotations

import statistics
import time

import torch

from persres.methods.common.sample_units import load_method
from persres.models.diffusion import load_diffusion
from persres.sampling.sample import Request, sample_batch
from persres.units.context import Context
from persres.units.outputs import read_index
from persres.units.specs import SampleSpec

ROUNDS, BATCH, STEPS = 5, 10, 25


def lag_time(context: Context) -> dict[str, float]:
    """Return median seconds of a batch of each, and the median ratio of consecutive pairs."""
    specs = {archive.spec.config: archive.spec for archive in read_index(context).archives}
    fused, lag = (_seconds(context, specs[name]) for name in ("ours", "ours_lag"))
    fused(), lag()  # warm-up
    pairs = [(fused(), lag()) for _ in range(ROUNDS)]
    return {
        "rounds": ROUNDS,
        "images": BATCH,
        "steps": STEPS,
        "threads": torch.get_num_threads(),
        "fused_s": round(statistics.median(f for f, _ in pairs), 3),
        "lag_s": round(statistics.median(w for _, w in pairs), 3),
        "ratio": round(statistics.median(w / f for f, w in pairs), 3),
    }


def _seconds(context: Context, spec: SampleSpec):
    diffusion = load_diffusion(spec.base, context.profile.runtime.device)
    loaded, image_specs = load_method(diffusion, spec), spec.image_specs[:BATCH]
    sampling = spec.sampling.model_copy(update={"steps": STEPS})

    def timed() -> float:
        started = time.perf_counter()
        sample_batch(diffusion, [Request(image_specs, sampling, loaded.bank)], spec.base.resolution)[0][0].cpu()
        return time.perf_counter() - started

    return timed
