"""One pair in both orders and one triple, drawn by every method, and their rows and claims."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from persres.experiments.extensions.multi_concept.cases import cases_of
from persres.experiments.extensions.multi_concept.claims import RegionScorer, examine_claims, with_best_halves
from persres.experiments.extensions.multi_concept.measure import score_configs
from persres.experiments.extensions.multi_concept.sampling import (
    CONFIGS,
    TRIPLE_CONFIGS,
    MultiConceptSampler,
    SampledImages,
)
from persres.images import png_bytes, zip_bytes
from persres.methods.common.registry import load_profile
from persres.metrics.clip_scores import load_clip
from persres.metrics.dino_scores import load_dino
from persres.models.diffusion import load_diffusion
from persres.units.context import Context


def main(params: Path, profile: str, work: Path, data: Path) -> None:
    """``samples/<method>/`` with masks, and ``rows/``."""
    context = Context(load_profile(params, profile), data, work)
    encoders, cases, rows = context.profile.encoders, cases_of(context, 1), []
    with tempfile.TemporaryDirectory() as kept:  # nothing that was drawn before is taken for today's
        studio = MultiConceptSampler(context, load_diffusion(context.profile.base, "cpu"), Path(kept))
        reader = RegionScorer(
            context, "cpu", load_clip(encoders.clip, "cpu"), load_dino(encoders.dino, "cpu"), studio.names
        )
        for count, methods in ((2, tuple(CONFIGS)), (3, TRIPLE_CONFIGS)):
            some = [case for case in cases if len(case.names) == count]
            drawn = {method: studio.draw(method, some) for method in methods}
            for method, found in drawn.items():
                _save(found, data / "samples" / f"{method}_{count}")
            rows.append(score_configs(reader, drawn, some).assign(count=count))
    (data / "rows").mkdir()
    _rows(rows, data / "rows")


def _save(drawn: SampledImages, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{i:02d}.png": png_bytes(Image.fromarray(image)) for i, image in enumerate(drawn.images)}
    masks = [] if drawn.masks is None else [mask for one in drawn.masks for mask in one]
    files |= {f"masks/{i:02d}.png": _grey(mask) for i, mask in enumerate(masks)}
    (folder / "all.zip").write_bytes(zip_bytes(files))


def _grey(mask: np.ndarray) -> bytes:
    return png_bytes(Image.fromarray((mask.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)))


def _rows(found: list[pd.DataFrame], folder: Path) -> None:
    """Labelled as the chain's are; and the effects of the claims on the pair."""
    rows = pd.concat(found)
    named = rows.assign(method=rows["method"] + "_" + rows["count"].astype(str), concept=rows["order"])
    named.drop(columns=["order", "group", "count"]).to_parquet(folder / "several.parquet")
    said = examine_claims(with_best_halves(found[0])).values()
    claims = [
        {"method": c["claim"], "concept": "all", "prompt": "claim", "image": 0, "effect": c["effect"]} for c in said
    ]
    pd.DataFrame(claims).to_parquet(folder / "claims.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
