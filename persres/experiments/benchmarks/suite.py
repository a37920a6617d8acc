"""The benchmark suite: training and sampling against diffusers and peft, with the FLOP lower bound -> ``data/bench``.

``<model>_<cpu|gpu>.json`` holds every figure with settings and versions, ``.md`` the tables, ``.png`` the chart.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from persres.errors import PersresError
from persres.experiments.benchmarks.figure import bench_figure
from persres.experiments.benchmarks.goals import goals_of
from persres.experiments.benchmarks.models import Measured, ModelChoice, load_measured
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
    """Training steps per run, sampling steps, alternating rounds, batch sizes of images, concepts per training batch, and the number of
    concepts whose images share a sampling batch."""

    train_steps: int = 4
    steps: int = 10
    rounds: int = 7
    batches: tuple[int, ...] = (1, 10, 32)  # the mini profile samples at 10
    concepts_per_batch: tuple[int, ...] = (4, 5, 8)  # the mini profile's ten concepts over two workers: 5
    batched: int = 10


def measure(model: Measured, settings: SuiteSettings) -> dict:
    """Return every figure. FLOP lower bound: operations over the rate of a large matrix product in the same precision."""
    rate = matmul_rate(model.device, getattr(torch, model.base.dtype))
    with measuring(model.device) as facts:
        training = training_times(model, settings.train_steps, settings.rounds, settings.concepts_per_batch)
        sampling = sampling_times(model, settings.steps, settings.rounds, settings.batches)
        batched = batched_times(model, settings.steps, settings.rounds, settings.batched)
    for row in (training, *sampling.values()):
        row["flop_bound_s"] = round(row["gflop"] * 1e9 / rate, 5)
        row["over_flop_bound"] = {name: round(s / row["flop_bound_s"], 2) for name, s in row["median_s"].items()}
    return {
        "model": model.name,
        "weights": model.weights,
        "device": facts["device"],
        "dtype": model.base.dtype,
        "resolution": model.base.resolution,
        "threads": torch.get_num_threads(),
        "matmul_gflop_s": round(rate / 1e9, 1),
        "rounds": settings.rounds,
        "amount": asdict(settings),
        "settings": model.settings.model_dump(mode="json", exclude_defaults=True),
        "versions": versions(),
        "peak_mib": facts["peak_mib"],
        "training": training,
        "sampling": sampling,
        "batched": batched,
    }


def run_suite(
    choice: ModelChoice, device: str = "auto", settings: SuiteSettings | None = None, out: Path = Path("data/bench")
) -> str:
    """Measure a model, write ``<out>/<name>_<cpu|gpu>`` as JSON, Markdown and PNG; return the tables.

    Raises PersresError for an unknown model, and if memory does not suffice.
    """
    try:
        record = measure(load_measured(choice, pick_device(device)), settings or SuiteSettings())
    except torch.OutOfMemoryError as error:
        raise PersresError(f"{error}; use smaller batches or another dtype") from error
    record["goals"] = goals_of(record)
    stem = f"{choice.name}_{'cpu' if record['device'] == 'cpu' else 'gpu'}"
    write_atomic(out / f"{stem}.json", json.dumps(record, indent=1).encode() + b"\n")
    write_atomic(out / f"{stem}.md", markdown(record).encode())
    bench_figure(record, out / f"{stem}.png")
    return markdown(record)
