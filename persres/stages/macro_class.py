"""macro_class: what each concept is called -> ``data/macro_class/macro_class.json`` (paper 3.2, appendix B).

The dataset's word, the nearest noun (the paper's way), or the class found by itself (persres/metrics/zero_shot_class.py).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from persres.config.schema import MacroClass
from persres.datasets.layout import read_concepts, reference_photos
from persres.datasets.wordnet import load_candidates
from persres.errors import PersresError
from persres.images import load_photo
from persres.metrics.clip_scores import load_clip
from persres.metrics.nouns import nearest_nouns, noun_features
from persres.metrics.zero_shot_class import ZeroShotResult, zero_shot_classifier
from persres.models.diffusion import load_diffusion
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock
from persres.units.outputs import CLASSES

log = logging.getLogger(__name__)
UNSURE = 0.5  # below this confidence a found class is probably not what a person would say


def macro_class(context: Context) -> None:
    """Publish the chosen class of every concept, and the nearest nouns and found classes where they were looked for."""
    settings = context.profile.macro_class
    with stage_lock(context.work, "macro_class"), publishing(context.data / "macro_class") as folder:
        found = _classes(context, settings)
        (folder / CLASSES).write_text(json.dumps(found, indent=1, ensure_ascii=False))
    counts = {
        concept.name: len(reference_photos(folder)) for concept, folder in read_concepts(context.data / "concepts")
    }
    for name, entry in found["concepts"].items():
        said = name, entry["selected"], entry["dataset"], entry["nearest"]
        log.info("macro_class: %s: %s (dataset %s, nearest %s)", *said)
        if settings.uses_zero_shot:
            _tell(name, entry)
            if settings.source == "zero_shot":
                _warn(name, entry, blind=counts[name] == 1 and settings.zero_shot_settings.diffusion_classifier)


def _tell(name: str, entry: dict) -> None:
    others = ", ".join(f"{noun} {share:.0%}" for noun, share in entry["zero_shot_top"][1:4])
    sure = entry["confidence"], entry["agreement"], others or "nothing else"
    log.info("macro_class: %s: found %s, confidence %.0f%%, by %.0f%% of the photos alone; then %s", name, entry["zero_shot"],
             100 * sure[0], 100 * sure[1], sure[2])  # fmt: skip


def _warn(name: str, entry: dict, blind: bool) -> None:
    """Where the found class is likely not what a person would say, and where nobody can tell (``blind``): of one photo the judge has no
    spread to go by, so its confidence is near 1 whatever it shows."""
    mend = "say --class, or macro_class in concept.json, if it is not"
    if blind:
        log.warning("macro_class: %s: found %r from one photo, whose confidence says nothing; %s", name, entry["zero_shot"], mend)  # fmt: skip
    elif entry["confidence"] < UNSURE:
        log.warning("macro_class: %s: not sure that this is %r; %s", name, entry["zero_shot"], mend)


def _classes(context: Context, settings: MacroClass) -> dict:
    nouns = load_candidates(settings.candidates) if settings.uses_nouns else []
    looks = _looks(context, settings, nouns) if nouns else []
    concepts = {}
    for concept, folder in read_concepts(context.data / "concepts"):
        entry = {"dataset": concept.macro_class, "nearest": None}
        photos = [load_photo(path) for path in reference_photos(folder)] if looks else []
        for look in looks:
            entry |= look(photos)
        key = {"wordnet": "nearest"}.get(settings.source, settings.source)
        concepts[concept.name] = entry | {"selected": entry[key]}
    return {
        "source": settings.source,
        "candidates": settings.candidates,
        "candidate_count": len(nouns),
        "concepts": concepts,
    }


def _looks(context: Context, settings: MacroClass, nouns: list[str]) -> list:
    """What is asked of each concept's photos: functions of them that give a part of its entry."""
    device, clip = context.profile.runtime.device, context.profile.encoders.clip
    encoder = load_clip(clip, device)

    def features(template: str):
        return noun_features(clip, template, settings.candidates, context.work, device, settings.batch_size)

    near = features(settings.template)
    looks = [lambda photos: nearest_nouns(encoder, photos, nouns, near)]
    if settings.uses_zero_shot:
        base = context.profile.base
        diffusion = (
            load_diffusion(base, device, context.profile.runtime.cpu_offload)
            if settings.zero_shot_settings.diffusion_classifier
            else None
        )
        found = zero_shot_classifier(
            settings.zero_shot_settings,
            encoder,
            nouns,
            [features(t) for t in settings.zero_shot_settings.templates],
            diffusion,
            base.resolution,
        )
        looks.append(lambda photos: _named(found(photos), settings.candidates).entry())
    return looks


def _named(found: ZeroShotResult | None, candidates: str | Path) -> ZeroShotResult:
    if found is None:
        raise PersresError(
            f"macro_class.candidates: nothing in {candidates} is a thing that a photo can show; add nouns such as dog"
        )
    return found
