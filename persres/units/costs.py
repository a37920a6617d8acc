"""Seconds and memory of training and sampling, one row per unit -> ``data/costs/*.csv``.

They are apart from the results, which are the same on every run of a machine.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.unit import Unit, facts
from persres.untrusted.documents import read_csv

FIX = "remove it and run dvc repro"
FOLDER, TRAIN, SAMPLE = "costs", "train.csv", "sample.csv"


class _Trained(BaseModel):
    """A row of ``train.csv``, as far as it is read."""

    variant: str
    seconds: float | None
    class_images_seconds: float | None
    peak_mib: float | None


class _Sampled(BaseModel):
    """A row of ``sample.csv``, as far as it is read."""

    config: str | int | float
    variant: str | None
    image_seconds: float | None


def _write(path: Path, rows: list[dict]) -> None:
    write_atomic(path, pd.DataFrame(rows).to_csv(index=False).encode())


def write_train_costs(context: Context, units: list[Unit], class_images: list[Unit]) -> None:
    """Write seconds and peak MiB of every concept and variant, and the seconds of sampling its class images.

    Units of one batch share its seconds; their memory is the batch's. ``seconds`` is empty for a unit that was resumed: the run that
    finished it measured only the rest.
    """
    sampling = {str(unit.folder(context.work)): facts(unit, context.work).get("seconds", 0.0) for unit in class_images}
    rows = []
    for unit in units:
        spec, run = unit.spec, facts(unit, context.work)
        whole = run.get("steps") == run.get("of_steps", spec.settings.steps)
        source = str(Path(spec.class_images.path).parent) if spec.class_images else None
        rows.append(
            {
                "variant": spec.variant,
                "concept": spec.concept,
                "seconds": run.get("seconds") if whole else None,
                "class_images_seconds": sampling.get(source, 0.0),
                "peak_mib": run.get("peak_mib"),
                "units_per_batch": run.get("units_per_batch", 1),
                "device": run.get("device"),
            }
        )
    _write(context.data / FOLDER / TRAIN, rows)


def write_sample_costs(context: Context, units: list[Unit]) -> None:
    """Write seconds per image and peak MiB of every concept and config."""
    rows = []
    for unit in units:
        spec, run = unit.spec, facts(unit, context.work)
        whole = "seconds" in run and run.get("sampled") and run["sampled"] == run.get("images")
        rows.append(
            {
                "config": spec.config,
                "concept": spec.concept,
                "variant": spec.sampling.variant,
                "image_seconds": run["seconds"] / run["sampled"] if whole else None,
                "peak_mib": run.get("peak_mib"),
                "device": run.get("device"),
            }
        )
    _write(context.data / FOLDER / SAMPLE, rows)


def read_costs(context: Context) -> pd.DataFrame:
    """Costs by config: seconds to train a concept and to sample its class images, peak MiB, seconds per image.

    Seconds are minima over the concepts, since a busy machine only adds to them; memory is the maximum.
    """
    # variants as text: pandas would read a column that is all empty, as for the base model alone, as numbers
    train = read_csv(context.data / FOLDER / TRAIN, _Trained, FIX, ("variant",))
    sample = read_csv(context.data / FOLDER / SAMPLE, _Sampled, FIX, ("variant",))
    trained = train.groupby("variant").agg(
        train_s=("seconds", "min"), class_images_s=("class_images_seconds", "min"), train_mib=("peak_mib", "max")
    )
    sampled = sample.groupby("config", sort=False).agg(variant=("variant", "first"), image_s=("image_seconds", "min"))
    return sampled.join(trained, on="variant").drop(columns="variant")
