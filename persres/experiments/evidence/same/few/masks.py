"""Where every masking lies on a few scenes: nameable ones, and the concepts' with what the chain has learned, alone and beside another."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.scenes import concept_case, concept_named, nameable_case, two_object_case
from persres.experiments.extensions.masks.coverage import coverage_rows
from persres.methods.common.registry import load_profile
from persres.models.diffusion import load_diffusion
from persres.residuals.file import load_bank

SCENES, VIEWS = 8, 4


def main(params: Path, profile: str, _work: Path, data: Path) -> None:
    """``rows/places.parquet``: a row per scene and masking."""
    base = load_profile(params, profile).base
    diffusion = load_diffusion(base, "cpu")
    case = nameable_case(diffusion, SCENES, base.token)
    rows = list(coverage_rows(diffusion, case, base.token, None, {"concept": "nameable"}, [False] * len(case.prompts)))
    for path in sorted((data / "learned" / "ours").glob("*.safetensors")):
        bank = load_bank(diffusion.unet, path)
        for make, beside in ((concept_case, False), (two_object_case, True)):
            case = make(diffusion, concept_named(path.stem), VIEWS, base.token)
            labels = {"concept": f"{path.stem}, {make.__name__}"}
            rows += coverage_rows(diffusion, case, base.token, bank, labels, [beside] * len(case.prompts))
    (data / "rows").mkdir()
    named = pd.DataFrame(rows).rename(columns={"masking": "method", "group": "prompt", "scene": "image"})
    named.to_parquet(data / "rows" / "places.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
