"""macro_class: what each concept is called -> ``data/macro_class/macro_class.json`` (paper 3.2, appendix B)."""

from __future__ import annotations

import json

import torch

from persres.datasets.layout import read_concepts, reference_photos
from persres.errors import PersresError
from persres.images import load_photo
from persres.metrics.clip_scores import ClipEncoder, load_clip
from persres.params import MacroClass
from persres.stages.context import Context
from persres.units import publishing, stage_lock
from persres.wordnet import load_candidates
from persres.wordnet.features import noun_features

FILE = "macro_class.json"


def macro_class(context: Context) -> None:
    """Publish the chosen class of every concept, and the nearest nouns where they were looked for."""
    settings = context.profile.macro_class
    with stage_lock(context.work, "macro_class"), publishing(context.data / "macro_class") as folder:
        found = _classes(context, settings)
        (folder / FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False))
    for name, entry in found["concepts"].items():
        print(f"macro_class: {name}: {entry['chosen']} (dataset {entry['dataset']}, nearest {entry['nearest']})")


def _classes(context: Context, settings: MacroClass) -> dict:
    looked_for = settings.source == "wordnet" or settings.nearest
    nouns: list[str] = []
    if looked_for:
        encoder = load_clip(context.profile.encoders.clip, context.profile.runtime.device)
        nouns = load_candidates(settings.candidates)
        features = noun_features(context.profile.encoders.clip, settings.template, settings.candidates, context.work,
                                 context.profile.runtime.device, settings.batch_size)  # fmt: skip
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


def nearest_nouns(encoder: ClipEncoder, photos: list, nouns: list[str], features: torch.Tensor) -> dict:
    """The nouns nearest to the mean image embedding (appendix B). ``features`` [n nouns, d], unit rows."""
    mean = encoder.images(photos).mean(0)
    cosine = features @ (mean / mean.norm())
    top = cosine.topk(min(5, len(nouns)))
    best = [[nouns[i], round(float(c), 4)] for c, i in zip(top.values, top.indices.tolist(), strict=True)]
    return {"nearest": best[0][0], "top": best}


def read_macro_classes(context: Context, source: str = "chosen") -> dict[str, str]:
    """The class by concept: the chosen one, the ``dataset``'s, or the nearest ``wordnet`` noun.

    Raises PersresError where nearest nouns are asked for and were not looked for.
    """
    path = context.data / "macro_class" / FILE
    if not path.exists():
        raise PersresError(f"no {path}; run the macro_class stage first")
    found = json.loads(path.read_text())
    key = {"wordnet": "nearest"}.get(source, source)
    classes = {name: entry[key] for name, entry in found["concepts"].items()}
    if None in classes.values():
        raise PersresError("class_source: wordnet needs the nearest nouns; say macro_class.nearest: true")
    return classes
