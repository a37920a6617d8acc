"""``persres bench``: training and sampling beside diffusers and peft, with the floor under each, on this machine -> ``data/bench``.

``<model>_<cpu|gpu>.json`` holds every figure with settings and versions, ``.md`` the same as tables, ``.png`` as a picture. Each goal of
the project stands beside what was measured, met or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from persres.benchmarks.figure import bench_figure
from persres.benchmarks.models import MINI, Measured, model_named
from persres.benchmarks.sampling import sampling_times
from persres.benchmarks.timing import matmul_rate
from persres.benchmarks.training import training_times
from persres.errors import PersresError
from persres.models.loading import pick_device
from persres.runs.files import write_atomic
from persres.runs.provenance import measured as measuring
from persres.runs.provenance import versions


@dataclass(frozen=True)
class Plan:
    """How much is measured: training steps of a run, sampling steps, rounds of alternating runs, batch sizes of pictures, concepts in one
    pass."""

    train_steps: int = 4
    steps: int = 10
    rounds: int = 7
    batches: tuple[int, ...] = (1, 8, 32)
    together: tuple[int, ...] = (4, 8)


def goals_of(found: dict) -> list[dict]:
    """The goals of the model and device that was measured: ``goal``, ``limit``, ``measured``, ``met``."""
    train, largest = found["training"], max(found["sampling"], key=int)
    drawn = found["sampling"][largest]
    most = max(train["together_of_alone"], key=int, default=None)
    four = train["together_of_alone"].get("4")
    asked: list[tuple[str, float, float | None]] = [
        ("LAG, of the same without", 1.02, drawn["lag_of_ours"]),
        ("normal sampling, of the base pipeline", 1.0, drawn["of_base"]),
    ]
    if found["model"] == MINI:
        asked += [
            ("training alone, of the plain loop", 0.6, train["of_plain"]),
            ("training alone, of the loop with caches", 0.7, train["of_cached"]),
            ("four concepts in one pass, of four alone", 0.6, four),
        ]
        if most:
            asked += [
                (
                    f"training as the stage does, {most} in one pass, of the plain loop",
                    0.6,
                    train["together_of_plain"][most],
                ),
                (
                    f"training as the stage does, {most} in one pass, of the loop with caches",
                    0.7,
                    train["together_of_cached"][most],
                ),
            ]
    elif found["device"] != "cpu":
        seconds = 150 * train["step_s"]["ours"]
        asked += [
            ("150 iterations alone, s", 10.0, seconds),
            ("a second's picture at 50 steps, s", 0.25, drawn["picture_s"]["ours"] * 50 / drawn["steps"]),
        ]
        if most:
            asked.append(
                (
                    f"150 iterations, {most} concepts in one pass, s a concept",
                    4.0,
                    150 * train["step_s"][f"{most} together"],
                )
            )
    return [
        {"goal": goal, "limit": limit, "measured": round(value, 3), "met": value <= limit}
        for goal, limit, value in asked
        if value is not None
    ]


def measure(model: Measured, plan: Plan) -> dict:
    """Every figure. Seconds over the floor: operations by the rate of a large matrix product in the same precision."""
    rate = matmul_rate(model.device, getattr(torch, model.base.dtype))
    with measuring(model.device) as facts:
        train = training_times(model, plan.train_steps, plan.rounds, plan.together)
        drawn = sampling_times(model, plan.steps, plan.rounds, plan.batches)
    train["floor_s"] = round(train["gflop"] * 1e9 / rate, 5)
    train["over_floor"] = {name: round(s / train["floor_s"], 2) for name, s in train["step_s"].items()}
    for row in drawn.values():
        row["floor_s"] = round(row["gflop"] * 1e9 / rate, 5)
        row["over_floor"] = {name: round(s / row["floor_s"], 2) for name, s in row["picture_s"].items()}
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
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
        "versions": versions(),
        "peak_mib": facts["peak_mib"],
        "training": train,
        "sampling": drawn,
    }


def markdown(found: dict) -> str:
    """The figures as tables."""
    train = found["training"]
    lines = [
        f"{found['model']}, {found['weights']} weights, {found['resolution']} px, {found['dtype']}, {found['device']},"
        f" {found['threads']} thread{'s' * (found['threads'] != 1)}; medians of {found['rounds']} rounds of alternating runs;"
        f" floor: operations at {found['matmul_gflop_s']:,} GFLOP/s, what a large matrix product reaches here",
        "",
        f"| training, a step of batch {train['batch']} of one concept | seconds | over the floor |",
        "|---|---|---|",
        *(f"| {_title(n)} | {s:.4f} | {train['over_floor'][n]:.1f} |" for n, s in train["step_s"].items()),
        "",
        "| sampling, a step of one picture | batch | seconds | over the floor |",
        "|---|---|---|---|",
    ]
    for batch, row in found["sampling"].items():
        lines += [
            f"| {_title(n)} | {batch} | {s / row['steps']:.4f} | {row['over_floor'][n]:.1f} |"
            for n, s in row["picture_s"].items()
        ]
    lines += ["", "| goal | at most | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {g['goal']} | {g['limit']} | {g['measured']} | {'met' if g['met'] else '**not met**'} |"
        for g in found["goals"]
    ]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    known = {
        "ours": "ours",
        "plain": "diffusers + peft, the script's loop",
        "cached": "the same with latents and text cached",
        "base pipeline": "StableDiffusionPipeline, base model",
        "lag": "ours, LAG",
        "lag auto": "ours, LAG with our masks",
    }
    return known.get(name, f"ours, {name.replace(' together', ' concepts in one pass')}")


def run_suite(
    name: str = MINI,
    device: str = "auto",
    dtype: str = "float32",
    resolution: int | None = None,
    plan: Plan | None = None,
    out: Path = Path("data/bench"),
) -> str:
    """Measure a model, write ``<out>/<name>_<cpu|gpu>`` as JSON, Markdown and PNG; returns the tables. Raises PersresError for an unknown
    model, and where memory does not suffice."""
    place = pick_device(device)
    try:
        found = measure(model_named(name, place, dtype, resolution), plan or Plan())
    except torch.OutOfMemoryError as error:
        raise PersresError(f"{error}; take smaller batches or another dtype") from error
    found["goals"] = goals_of(found)
    stem = f"{name}_{'cpu' if found['device'] == 'cpu' else 'gpu'}"
    write_atomic(out / f"{stem}.json", json.dumps(found, indent=1).encode() + b"\n")
    write_atomic(out / f"{stem}.md", markdown(found).encode())
    bench_figure(found, out / f"{stem}.png")
    return markdown(found)
