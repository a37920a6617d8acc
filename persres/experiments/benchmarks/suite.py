"""``persres dev bench``: training and sampling beside diffusers and peft, with the floor under each, on this machine -> ``data/bench``.

``<model>_<cpu|gpu>.json`` holds every figure with settings and versions, ``.md`` the same as tables, ``.png`` as a picture. Each goal of
the project stands beside what was measured, met or not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from persres.errors import PersresError
from persres.experiments.benchmarks.figure import bench_figure
from persres.experiments.benchmarks.goals import goals_of
from persres.experiments.benchmarks.models import MINI, Measured, model_named
from persres.experiments.benchmarks.sampling import batched_times, sampling_times
from persres.experiments.benchmarks.tables import markdown
from persres.experiments.benchmarks.timing import matmul_rate
from persres.experiments.benchmarks.training import training_times
from persres.models.loading import pick_device
from persres.units.files import write_atomic
from persres.units.provenance import measured as measuring
from persres.units.provenance import versions


@dataclass(frozen=True)
class SuiteSettings:
    """How much is measured: training steps of a run, sampling steps, rounds of alternating runs, batch sizes of pictures, concepts in one
    pass, and concepts of which a picture each is drawn in one batch."""

    train_steps: int = 4
    steps: int = 10
    rounds: int = 7
    batches: tuple[int, ...] = (1, 10, 32)  # the mini profile draws at 10
    together: tuple[int, ...] = (4, 5, 8)  # its ten concepts over two workers are 5 in one pass
    mixed: int = 10


def measure(model: Measured, plan: SuiteSettings) -> dict:
    """Every figure. Seconds over the floor: operations by the rate of a large matrix product in the same precision."""
    rate = matmul_rate(model.device, getattr(torch, model.base.dtype))
    with measuring(model.device) as facts:
        train = training_times(model, plan.train_steps, plan.rounds, plan.together)
        drawn = sampling_times(model, plan.steps, plan.rounds, plan.batches)
        mixed = batched_times(model, plan.steps, plan.rounds, plan.mixed)
    for row in (train, *drawn.values()):
        row["floor_s"] = round(row["gflop"] * 1e9 / rate, 5)
        row["over_floor"] = {name: round(s / row["floor_s"], 2) for name, s in row["median_s"].items()}
    base, settings = model.base, model.settings
    return {
        "model": model.name,
        "weights": model.weights,
        "device": facts["device"],
        "dtype": base.dtype,
        "resolution": base.resolution,
        "threads": torch.get_num_threads(),
        "matmul_gflop_s": round(rate / 1e9, 1),
        "rounds": plan.rounds,
        "plan": asdict(plan),
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
        "versions": versions(),
        "peak_mib": facts["peak_mib"],
        "training": train,
        "sampling": drawn,
        "mixed": mixed,
    }


def run_suite(
    name: str = MINI,
    device: str = "auto",
    dtype: str = "float32",
    resolution: int | None = None,
    plan: SuiteSettings | None = None,
    out: Path = Path("data/bench"),
) -> str:
    """Measure a model, write ``<out>/<name>_<cpu|gpu>`` as JSON, Markdown and PNG; returns the tables. Raises PersresError for an unknown
    model, and where memory does not suffice."""
    place = pick_device(device)
    try:
        found = measure(model_named(name, place, dtype, resolution), plan or SuiteSettings())
    except torch.OutOfMemoryError as error:
        raise PersresError(f"{error}; take smaller batches or another dtype") from error
    found["goals"] = goals_of(found)
    stem = f"{name}_{'cpu' if found['device'] == 'cpu' else 'gpu'}"
    write_atomic(out / f"{stem}.json", json.dumps(found, indent=1).encode() + b"\n")
    write_atomic(out / f"{stem}.md", markdown(found).encode())
    bench_figure(found, out / f"{stem}.png")
    return markdown(found)
