"""What LAG costs: batches with it and with the residual fused into the weights, in turn, in one process."""

from __future__ import annotations

import statistics
import time

import torch

from persres.methods.common.draw import load_learned
from persres.models.diffusion import load_diffusion
from persres.runs.context import Context
from persres.runs.outputs import read_index
from persres.runs.specs import SampleSpec
from persres.sampling.draw import draw

ROUNDS, BATCH, STEPS = 5, 10, 25


def lag_time(context: Context) -> dict[str, float]:
    """Median seconds of a batch of each, and the median ratio of pairs that follow each other."""
    specs = {pack.spec.method: pack.spec for pack in read_index(context).packs}
    fused, lag = (_seconds(context, specs[name]) for name in ("ours", "ours_lag"))
    fused(), lag()  # the first run of each also sets things up
    pairs = [(fused(), lag()) for _ in range(ROUNDS)]
    return {
        "rounds": ROUNDS,
        "pictures": BATCH,
        "steps": STEPS,
        "threads": torch.get_num_threads(),
        "fused_s": round(statistics.median(f for f, _ in pairs), 3),
        "lag_s": round(statistics.median(w for _, w in pairs), 3),
        "ratio": round(statistics.median(w / f for f, w in pairs), 3),
    }


def _seconds(context: Context, spec: SampleSpec):
    diffusion = load_diffusion(spec.base, context.profile.runtime.device)
    loaded, items = load_learned(diffusion, spec), spec.items()[:BATCH]
    drawing = spec.drawing.model_copy(update={"steps": STEPS})

    def timed() -> float:
        started = time.perf_counter()
        draw(diffusion, items, drawing, loaded.bank, spec.base.resolution)[0].cpu()
        return time.perf_counter() - started

    return timed
