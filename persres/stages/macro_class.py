"""macro_class: what each concept is called -> ``data/macro_class/macro_class.json`` (paper 3.2, appendix B)."""

from __future__ import annotations

import json
import logging

from persres.config import MacroClass
from persres.datasets.layout import read_concepts, reference_photos
from persres.datasets.wordnet import load_candidates
from persres.images import load_photo
from persres.metrics.clip_scores import load_clip
from persres.metrics.nouns import nearest_nouns, noun_features
from persres.runs.context import Context
from persres.runs.files import publishing
from persres.runs.locks import stage_lock
from persres.runs.outputs import CLASSES

log = logging.getLogger(__name__)


def macro_class(context: Context) -> None:
    """Publish the chosen class of every concept, and the nearest nouns where they were looked for."""
    settings = context.profile.macro_class
    with stage_lock(context.work, "macro_class"), publishing(context.data / "macro_class") as folder:
        found = _classes(context, settings)
        (folder / CLASSES).write_text(json.dumps(found, indent=1, ensure_ascii=False))
    for name, entry in found["concepts"].items():
        said = name, entry["chosen"], entry["dataset"], entry["nearest"]
        log.info("macro_class: %s: %s (dataset %s, nearest %s)", *said)


def _classes(context: Context, settings: MacroClass) -> dict:
    looked_for = settings.source == "wordnet" or settings.nearest
    nouns: list[str] = []
    if looked_for:
        encoder = load_clip(context.profile.encoders.clip, context.profile.runtime.device)
        nouns = load_candidates(settings.candidates)
        features = noun_features(
            context.profile.encoders.clip,
            settings.template,
            settings.candidates,
            context.work,
            context.profile.runtime.device,
            settings.batch_size,
        )
    concepts = {}
    for concept, folder in read_concepts(context.data / "concepts"):
        entry = {"dataset": concept.macro_class, "nearest": None, "chosen": concept.macro_class}
        if looked_for:
            photos = [load_photo(path) for path in reference_photos(folder)]
            entry |= nearest_nouns(encoder, photos, nouns, features)
        entry["chosen"] = entry["nearest"] if settings.source == "wordnet" else concept.macro_class
        concepts[concept.name] = entry
    return {
        "source": settings.source,
        "candidates": settings.candidates,
        "candidate_count": len(nouns),
        "concepts": concepts,
    }
