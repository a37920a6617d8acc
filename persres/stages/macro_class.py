"""macro_class: each concept's macro class -> ``data/macro_class/macro_class.json`` (paper 3.2, appendix B).

The dataset's class, the nearest noun (as in the paper), or the zero-shot class (persres/metrics/zero_shot_class.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial

import torch

from persres.config.schema import MacroClass, ZeroShotClassSettings
from persres.datasets.layout import read_concepts, reference_photos
from persres.datasets.wordnet import load_candidates
from persres.errors import PersresError
from persres.images import load_photo
from persres.metrics.clip_scores import load_clip
from persres.metrics.diffusion_classifier import denoising_errors
from persres.metrics.nouns import NounList, nearest_nouns, noun_features
from persres.metrics.zero_shot_class import DiffusionClassifier, ZeroShotResult, zero_shot_classifier
from persres.models.diffusion import load_diffusion
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import CLASSES

log = logging.getLogger(__name__)
MIN_CONFIDENCE = 0.5  # below it a zero-shot class is probably not the word that a person would use


def macro_class(context: Context) -> None:
    """Publish the selected class of every concept and, where the settings ask for them, nearest nouns and zero-shot classes."""
    settings = context.profile.macro_class
    with stage_lock(context.work, "macro_class"), publishing(context.data / "macro_class") as folder:
        classes = _classes(context, settings)
        (folder / CLASSES).write_text(json.dumps(classes, indent=1, ensure_ascii=False))
    for concept, folder in read_concepts(context.data / "concepts"):
        _log(settings, concept.name, classes["concepts"][concept.name], len(reference_photos(folder)))


def _log(settings: MacroClass, name: str, entry: dict, photos: int) -> None:
    log.info(
        "macro_class: %s: %s (dataset %s, nearest %s)", name, entry["selected"], entry["dataset"], entry["nearest"]
    )
    if settings.uses_zero_shot:
        others = ", ".join(f"{noun} {share:.0%}" for noun, share in entry["zero_shot_top"][1:4]) or "nothing else"
        log.info("macro_class: %s: zero-shot class %s, confidence %.0f%%, agreement %.0f%% of the photos; then %s",
                 name, entry["zero_shot"], 100 * entry["confidence"], 100 * entry["agreement"], others)  # fmt: skip
    if settings.source == "zero_shot":
        _warn(name, entry, photos == 1 and settings.zero_shot_settings.diffusion_classifier)


def _warn(name: str, entry: dict, single_photo: bool) -> None:
    """Warn of a low confidence, or of a meaningless one: the diffusion classifier's differences have no spread over one photo,
    so its confidence is near 1."""
    fix = "pass --class, or set macro_class in concept.json, if it is wrong"
    if single_photo:
        log.warning("macro_class: %s: class %r from one photo, whose confidence means nothing; %s", name, entry["zero_shot"], fix)  # fmt: skip
    elif entry["confidence"] < MIN_CONFIDENCE:
        log.warning("macro_class: %s: low confidence in class %r; %s", name, entry["zero_shot"], fix)


def _classes(context: Context, settings: MacroClass) -> dict:
    """The content of macro_class.json."""
    nouns = load_candidates(settings.candidates) if settings.uses_nouns else []
    classifiers = _classifiers(context, settings, nouns) if nouns else []
    concepts = {}
    for concept, folder in read_concepts(context.data / "concepts"):
        entry = {"dataset": concept.macro_class, "nearest": None}
        photos = [load_photo(path) for path in reference_photos(folder)] if classifiers else []
        for classify in classifiers:
            entry |= classify(photos)
        key = "nearest" if settings.source == "wordnet" else settings.source
        concepts[concept.name] = entry | {"selected": entry[key]}
    return {
        "source": settings.source,
        "candidates": settings.candidates,
        "candidate_count": len(nouns),
        "concepts": concepts,
    }


def _classifiers(context: Context, settings: MacroClass, nouns: list[str]) -> list[Callable[[list], dict]]:
    """Functions of a concept's photos that return entries of macro_class.json."""
    device, clip = context.profile.runtime.device, context.profile.encoders.clip
    encoder = load_clip(clip, device)

    def features(template: str) -> torch.Tensor:
        return noun_features(NounList(clip, template, settings.candidates), context.work, device, settings.batch_size)

    near = features(settings.template)
    classifiers = [lambda photos: nearest_nouns(encoder, photos, nouns, near)]
    if settings.uses_zero_shot:
        zero_shot = settings.zero_shot_settings
        templates = [features(template) for template in zero_shot.templates]
        errors = _diffusion_classifier(context, zero_shot) if zero_shot.diffusion_classifier else None
        classify = zero_shot_classifier(zero_shot, encoder, nouns, templates, errors)
        classifiers.append(lambda photos: _result(classify(photos), settings.candidates).entry())
    return classifiers


def _diffusion_classifier(context: Context, settings: ZeroShotClassSettings) -> DiffusionClassifier:
    base, runtime = context.profile.base, context.profile.runtime
    diffusion = load_diffusion(base, runtime.device, runtime.cpu_offload)
    return partial(denoising_errors, diffusion, resolution=base.resolution, settings=settings)


def _result(result: ZeroShotResult | None, candidates: str) -> ZeroShotResult:
    if result is None:
        raise PersresError(
            f"macro_class.candidates: {candidates} has no noun that a photo can show; add nouns such as dog"
        )
    return result
