"""The part itself, with fewer looks: the class found of each concept, its confidence, the claims, and the numbers that they rest on."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from persres.config.schema import ZeroShotClassSettings
from persres.datasets.wordnet import load_candidates
from persres.experiments.extensions.study import Run
from persres.experiments.extensions.zero_shot_class import measure
from persres.methods.common.registry import load_profile
from persres.metrics.clip_scores import load_clip
from persres.metrics.diffusion_classifier import denoising_errors
from persres.miniworld.concepts import CONCEPTS, views
from persres.models.diffusion import load_diffusion

READ, JUDGED, DRAWS = 24, 6, 1  # looks that CLIP reads, and that the base model judges too; noise levels of each photo
SUBJECTS = 2  # concepts whose features and errors are compared number by number


def main(params: Path, profile: str, work: Path, data: Path) -> None:
    """``learned/nouns/``: CLIP's features and the base model's errors; ``rows/nouns.parquet``: what was found, and the claims."""
    measure.READ, measure.JUDGED, measure.DRAWS = READ, (JUDGED, JUDGED), (DRAWS, DRAWS)
    with tempfile.TemporaryDirectory() as out:
        summary = measure.STUDY.measure(Run(params, work, "cpu"), Path(out))
    _numbers(params, profile, data / "learned" / "nouns")
    words = load_candidates(load_profile(params, profile).macro_class.candidates)
    rows = [_found(concept, words) for concept in summary["concepts"]]
    rows += [
        {"method": c["claim"], "concept": "all", "prompt": "claim", "effect": c["effect"]} for c in summary["claims"]
    ]
    (data / "rows").mkdir()
    pd.DataFrame(rows).assign(image=0).to_parquet(data / "rows" / "nouns.parquet")


def _found(concept: dict, words: list[str]) -> dict:
    """``found``: the place of the class among the nouns."""
    numbers = {
        "confidence": concept["confidence"],
        "agreement": concept["agreement"],
        "found": words.index(concept["found"]),
    }
    return {"method": "found", "concept": concept["concept"], "prompt": "class"} | numbers


def _numbers(params: Path, profile: str, folder: Path) -> None:
    settings = load_profile(params, profile)
    encoder, diffusion = load_clip(settings.encoders.clip, "cpu"), load_diffusion(settings.base, "cpu")
    names = load_candidates(settings.macro_class.candidates)
    prompts = [settings.macro_class.finder.prompt.replace("{}", noun) for noun in names]
    folder.mkdir(parents=True)
    for concept in CONCEPTS[:SUBJECTS]:
        photos = [view.image for view in views(concept, "reference", measure.PHOTOS, 0)]
        errors = denoising_errors(
            diffusion,
            photos,
            prompts,
            settings.base.resolution,
            ZeroShotClassSettings(noise_levels=DRAWS, batch_size=20),
        )
        features = encoder.images(photos)
        save_file(
            {"errors": errors.contiguous(), "features": features.contiguous()}, folder / f"{concept.name}.safetensors"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:5]))
