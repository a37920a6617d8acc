"""score: one row per image -> ``data/scores/scores.parquet``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from persres.datasets.layout import read_concepts, reference_photos
from persres.metrics.score_units import FILE
from persres.models.loading import model_identity
from persres.package_paths import located
from persres.stages.jobs import job_type, make_unit
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import SCORES, read_index
from persres.units.specs import ClassifierRef, FileRef, ScoreSpec
from persres.units.unit import Unit


def score_units(context: Context) -> list[Unit[ScoreSpec]]:
    """The scoring units, one per image archive."""
    concepts = {concept.name: (concept, folder) for concept, folder in read_concepts(context.data / "concepts")}
    index, encoders, samples = read_index(context), context.profile.encoders, context.data / "samples"
    base = next((name for name, facts in index.configs.items() if facts.sampling.is_base), None)
    classifier, units = _classifier(context), []
    for archive in index.archives:
        concept, folder = concepts[archive.spec.concept]
        compared = base not in (None, archive.spec.config) and archive.spec.sampling.ground_truth is None
        unit = make_unit(
            "score",
            archive.name,
            clip=encoders.clip,
            dino=encoders.dino,
            models=(model_identity(encoders.clip.model), model_identity(encoders.dino.model)),
            classifier=classifier,
            concept=concept.name,
            category=concept.category,
            config=archive.spec.config,
            seed=archive.spec.sampling.seed,
            sample_hash=archive.hash,
            image_specs=tuple(archive.spec.image_specs),
            prompts=archive.spec.prompts,
            archive=FileRef.of(samples / f"{archive.name}.zip"),
            base_archive=FileRef.of(samples / f"{base}" / f"{concept.name}.zip") if compared else None,
            references=tuple(FileRef.of(path) for path in reference_photos(folder)),
        )
        units.append(unit)
    return units


def _classifier(context: Context) -> ClassifierRef | None:
    folder = context.profile.score.attribute_classifier
    return folder and ClassifierRef(dataset=context.profile.fetch.dataset, weights=FileRef.of(Path(located(folder))))


def score(context: Context) -> None:
    """Score what is not scored yet, then publish all rows as one file."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "score"):
        units = score_units(context)
        by_concept = sorted(units, key=lambda unit: unit.spec.concept)  # cached features serve a concept's configs
        job = job_type("score").job(units, batch=context.profile.score.batch_size)
        context.run_units(by_concept, context.work, job, runtime.workers, runtime.device)
        rows = pd.concat([pd.read_parquet(unit.folder(context.work) / FILE) for unit in units], ignore_index=True)
        with publishing(context.data / "scores") as out:
            rows.to_parquet(out / SCORES, index=False)
