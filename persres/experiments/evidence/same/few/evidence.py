"""The localisation of a few nameable scenes."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.localisation import localisation_rows
from persres.experiments.evidence.scenes import nameable_case
from persres.methods.common.registry import load_profile
from persres.models.diffusion import load_diffusion

SCENES = 8


def main(params: Path, profile: str, _work: Path, data: Path) -> None:
    """``rows/localisation.parquet``: a row per tokens, t and block."""
    base = load_profile(params, profile).base
    diffusion = load_diffusion(base, "cpu")
    rows = pd.DataFrame(
        localisation_rows(diffusion, [(nameable_case(diffusion, SCENES, base.token), None)], base.token)
    )
    (data / "rows").mkdir()
    named = {"block": "method", "tokens": "concept", "t": "image"}
    rows.rename(columns=named).assign(prompt="nameable").to_parquet(data / "rows" / "localisation.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
