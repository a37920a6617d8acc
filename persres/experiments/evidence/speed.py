"""Blocks of docs/speed.md from ``data/bench``, of kind ``bench``: each a function of the records by file name."""

from __future__ import annotations

import json
from pathlib import Path

from persres.experiments.benchmarks.tables import goals, heading
from persres.report.table_text import markdown as table

PAGE = Path("docs/speed.md")


def records(folder: Path) -> dict[str, dict]:
    """Return every record of a folder, by file name without suffix."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def cpu(records: dict[str, dict]) -> str:
    """Goals on the mini world, on a CPU."""
    return f"{heading(records['mini_cpu'])}\n{goals(records['mini_cpu'])}"


def gpu(records: dict[str, dict]) -> str:
    """Goals at Stable Diffusion's size, on a GPU."""
    return f"{heading(records['sd14_gpu'])}\n{goals(records['sd14_gpu'])}"


def full_size(records: dict[str, dict]) -> str:
    """Images per second at Stable Diffusion's size, with and without LAG."""
    record, rows = records["h100_sd14"], []
    for batch, plain in record["image_s"].items():
        lag = record["image_lag_s"][batch]
        rows.append([batch, f"{plain:.3f}", f"{1 / plain:.1f}", f"{lag:.3f}", f"{lag / plain:.2f}"])
    setting = (
        f"{record['device']}, {record['family']} with random weights, {record['resolution']} px, {record['dtype']}: 150 training steps of"
        f" batch {record['train_batch']} take {150 * record['train_step_s']:.1f} s. Images of {record['sample_steps']} steps:\n\n"
    )
    return setting + table(["batch", "s per image", "images per s", "s per image with LAG", "with / without"], rows)


def chain(records: dict[str, dict]) -> str:
    """Seconds of ``make repro`` by stage."""
    run = records["chain"]["dvc"]
    rows = [[f"work: {stage}", f"{s:.0f}"] for stage, s in run["work_s"].items()]
    rows += [[name, f"{s:.0f}"] for name, s in run["rest_s"].items() if s >= 0.5]
    rows += [["*all work*", f"{run['bare_s']:.0f}"], ["*total*", f"{run['wall_s']:.0f}"]]
    caption = f"The total is {run['overhead']:.0%} more than the work, with {run['workers']} workers.\n"
    return table([records["chain"]["measured"], "seconds"], rows) + f"\n{caption}"


BLOCKS = {f.__name__: f for f in (cpu, gpu, full_size, chain)}
