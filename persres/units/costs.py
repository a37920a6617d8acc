"""What training and drawing took, one row a unit -> ``data/costs/*.csv``: apart from the results, which are the same on
every run of a machine, while seconds are not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.unit import Unit, facts

FOLDER, TRAIN, SAMPLE = "costs", "train.csv", "sample.csv"


def _write(path: Path, rows: list[dict]) -> None:
    write_atomic(path, pd.DataFrame(rows).to_csv(index=False).encode())


def write_train_costs(context: Context, units: list[Unit], class_images: list[Unit]) -> None:
    """Seconds and peak memory of every concept and variant, and the seconds of drawing the class images it learned from.

    ``units_per_batch``: concepts that trained in one batch; they share its seconds, and each row has its peak memory. ``seconds`` is empty for a unit that was killed on the way: the run that ended it saw only the rest.
    """
    sampling = {str(unit.folder(context.work)): facts(unit, context.work)["seconds"] for unit in class_images}
    rows = []
    for unit in units:
        spec, seen = unit.spec, facts(unit, context.work)
        whole = seen.get("steps") == seen.get("of_steps", spec.settings.steps)
        source = str(Path(spec.class_images.path).parent) if spec.class_images else None
        rows.append(
            {
                "variant": spec.variant,
                "concept": spec.concept,
                "seconds": seen["seconds"] if whole else None,
                "class_images_seconds": sampling.get(source, 0.0),
                "peak_mib": seen["peak_mib"],
                "units_per_batch": seen.get("units_per_batch", 1),
                "device": seen["device"],
            }
        )
    _write(context.data / FOLDER / TRAIN, rows)


def write_sample_costs(context: Context, units: list[Unit]) -> None:
    """Seconds a picture and peak memory of every concept and method."""
    rows = []
    for unit in units:
        spec, seen = unit.spec, facts(unit, context.work)
        rows.append(
            {
                "method": spec.config,
                "concept": spec.concept,
                "variant": spec.sampling.variant,
                "picture_seconds": seen["seconds"] / seen["drawn"] if seen.get("drawn") == seen["pictures"] else None,
                "peak_mib": seen["peak_mib"],
                "device": seen["device"],
            }
        )
    _write(context.data / FOLDER / SAMPLE, rows)


def read_costs(context: Context) -> pd.DataFrame:
    """By method: least training seconds of a concept (a busy machine only adds) with its class images', highest training memory in MiB, least seconds a picture."""
    # as text: a column of which every entry is empty, as where only the base model drew, would be read as numbers
    train, sample = (pd.read_csv(context.data / FOLDER / name, dtype={"variant": str}) for name in (TRAIN, SAMPLE))
    trained = train.groupby("variant").agg(
        train_s=("seconds", "min"), class_images_s=("class_images_seconds", "min"), train_mib=("peak_mib", "max")
    )
    drawn = sample.groupby("method", sort=False).agg(variant=("variant", "first"), picture_s=("picture_seconds", "min"))
    return drawn.join(trained, on="variant").drop(columns="variant")
