"""score: one tidy row per picture -> ``data/scores/scores.parquet``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from persres.datasets.layout import Concept, read_concepts, reference_photos
from persres.datasets.registry import judge_module
from persres.metrics.score import FILE, score_unit
from persres.models.loading import model_identity
from persres.places import located
from persres.runs.code import code_digest
from persres.runs.context import Context
from persres.runs.files import publishing
from persres.runs.locks import stage_lock
from persres.runs.outputs import SCORES, Pack, read_index
from persres.runs.specs import FileRef, JudgeRef, ScoreSpec
from persres.runs.units import Unit


def score_units(context: Context) -> list[Unit[ScoreSpec]]:
    """One unit per concept and method that was sampled."""
    concepts = {concept.name: (concept, folder) for concept, folder in read_concepts(context.data / "concepts")}
    index = read_index(context)
    base = next((name for name, about in index.methods.items() if about.drawing.variant is None), None)
    judge = _judge(context)
    code = code_digest("score", *([] if judge is None else [judge_module(judge.dataset).__name__]))
    units = []
    for pack in index.packs:
        concept, folder = concepts[pack.spec.concept]
        references = tuple(FileRef.of(path) for path in reference_photos(folder))
        spec = _spec(context, pack, concept, base, judge, references, code)
        units.append(Unit("score", pack.name, spec))
    return units


def _judge(context: Context) -> JudgeRef | None:
    folder = context.profile.score.judge
    return folder and JudgeRef(dataset=context.profile.fetch.dataset, weights=FileRef.of(Path(located(folder))))


def _spec(
    context: Context,
    pack: Pack,
    concept: Concept,
    base: str | None,
    judge: JudgeRef | None,
    references: tuple[FileRef, ...],
    code: str,
) -> ScoreSpec:
    encoders, drawn = context.profile.encoders, pack.spec
    against = context.data / "samples" / f"{base}" / f"{concept.name}.zip" if base not in (None, drawn.method) else None
    return ScoreSpec(
        clip=encoders.clip,
        dino=encoders.dino,
        models=(model_identity(encoders.clip.model), model_identity(encoders.dino.model)),
        judge=judge,
        concept=concept.name,
        category=concept.category,
        method=drawn.method,
        seed=drawn.drawing.seed,
        sample_hash=pack.hash,
        items=tuple(drawn.items()),
        prompts=drawn.prompts,
        pack=FileRef.of(context.data / "samples" / f"{pack.name}.zip"),
        base_pack=FileRef.of(against) if against else None,
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
