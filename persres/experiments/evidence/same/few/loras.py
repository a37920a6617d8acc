"""LoRAs of every variant trained for a few steps, and drawn in every way: whole, masked, and with the masks that do not look."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from persres.experiments.extensions.masked_lora import measure
from persres.experiments.extensions.masked_lora.sampling import ROWS, SHOWN
from persres.experiments.extensions.masked_lora.train import VARIANTS
from persres.experiments.extensions.study import Run
from persres.methods.common.registry import load_profile
from persres.units.specs import FileRef

CONCEPT = "rally_car"
TRAINED, DRAWN, PROMPTS = 12, 8, 2


def main(params: Path, profile: str, work: Path, data: Path) -> None:
    """``learned/<variant>/``, ``samples/<variant>/`` and ``rows/``."""
    run = Run(params, work, "cpu", load_profile(params, profile))
    measure.STEPS = DRAWN
    rows = []
    for variant, recipe in list(VARIANTS.items()):
        VARIANTS[variant] = recipe.model_copy(update={"steps": TRAINED})
        (unit,) = measure.sampled_units(run, (variant,), PROMPTS, 1, (CONCEPT,))
        folder = unit.folder(work)
        _copy(Path(FileRef.model_validate(unit.spec.lora).path), data / "learned" / variant / f"{CONCEPT}.safetensors")
        _copy(folder / SHOWN, data / "samples" / variant / f"{CONCEPT}.zip")
        found = pd.read_parquet(folder / ROWS)
        number = found.groupby("way").cumcount()
        rows.append(found.assign(method=variant + " " + found["way"], prompt=found["group"], image=number))
    (data / "rows").mkdir()
    pd.concat(rows).drop(columns=["variant", "way", "group"]).to_parquet(data / "rows" / "loras.parquet")


def _copy(one: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(one, to)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
