"""score: one row per image -> ``data/scores/scores.parquet``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from persres.datasets.layout import Concept, read_concepts, reference_photos
from persres.datasets.registry import classifier_module
from persres.metrics.score_units import FILE, score_unit
from persres.metrics.scores import SCORE_MODULES
from persres.models.loading import model_identity
from persres.package_paths import located
from persres.units.code_digest import code_digest
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import SCORES, ImageArchive, read_index
from persres.units.specs import ClassifierRef, FileRef, ScoreSpec
from persres.units.unit import Unit


def score_units(context: Context) -> list[Unit[ScoreSpec]]:
    """The scoring units: one per image archive."""
    concepts = {concept.name: (concept, folder) for concept, folder in read_concepts(context.data / "concepts")}
    index = read_index(context)
    base = next((name for name, about in index.configs.items() if about.sampling.variant is None), None)
    classifier = _classifier(context)
    code = code_digest(
        "score", *SCORE_MODULES, *([] if classifier is None else [classifier_module(classifier.dataset).__name__])
    )
    units = []
    for archive in index.archives:
        concept, folder = concepts[archive.spec.concept]
        references = tuple(FileRef.of(path) for path in reference_photos(folder))
        spec = _spec(context, archive, concept, base, classifier, references, code)
        units.append(Unit("score", archive.name, spec))
    return units


def _classifier(context: Context) -> ClassifierRef | None:
    folder = context.profile.score.attribute_classifier
    return folder and ClassifierRef(dataset=context.profile.fetch.dataset, weights=FileRef.of(Path(located(folder))))


def _spec(
    context: Context,
    archive: ImageArchive,
    concept: Concept,
    base: str | None,
    classifier: ClassifierRef | None,
    references: tuple[FileRef, ...],
    code: str,
) -> ScoreSpec:
    encoders, sampled = context.profile.encoders, archive.spec
    against = (
        context.data / "samples" / f"{base}" / f"{concept.name}.zip" if base not in (None, sampled.config) else None
    )
    return ScoreSpec(
        clip=encoders.clip,
        dino=encoders.dino,
        models=(model_identity(encoders.clip.model), model_identity(encoders.dino.model)),
        classifier=classifier,
        concept=concept.name,
        category=concept.category,
        config=sampled.config,
        seed=sampled.sampling.seed,
        sample_hash=archive.hash,
        image_specs=tuple(sampled.image_specs),
        prompts=sampled.prompts,
        archive=FileRef.of(context.data / "samples" / f"{archive.name}.zip"),
        base_archive=FileRef.of(against) if against else None,
        references=references,
        code=code,
    )


def score(context: Context) -> None:
    """Score what is not scored yet, then publish all rows as one file."""
    runtime = context.profile.runtime
    with stage_lock(context.work, "score"):
        units = score_units(context)
        work = partial(score_unit, batch=context.profile.score.batch_size)
        beside = sorted(
            units, key=lambda unit: unit.spec.concept
        )  # what a process keeps serves a concept's other methods
        context.place(beside, context.work, work, runtime.workers, runtime.device)
        rows = pd.concat([pd.read_parquet(unit.folder(context.work) / FILE) for unit in units], ignore_index=True)
        with publishing(context.data / "scores") as out:
            rows.to_parquet(out / SCORES, index=False)
