"""The zero-shot macro class against the paper's nearest noun: on the ten concepts, on unseen subjects, and on real photos if measured.

Real photos: persres.experiments.extensions.zero_shot_class.real_photos.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from persres.datasets.wordnet import load_candidates
from persres.datasets.wordnet.senses import load_senses
from persres.experiments.extensions.study import Run, Study
from persres.experiments.extensions.zero_shot_class.claims import (
    COUNTS,
    PHOTOS,
    Rows,
    accuracy_of,
    claims,
    negative_controls,
    zero_shot_rows,
)
from persres.experiments.extensions.zero_shot_class.figures import METHODS, accuracy_figure
from persres.experiments.extensions.zero_shot_class.real_photos import RECORD, real_photos_table
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import identity_scenes
from persres.logging import progress
from persres.methods.common.registry import load_profile
from persres.metrics.clip_scores import ClipEncoder, load_clip
from persres.metrics.diffusion_classifier import denoising_errors
from persres.metrics.summary import bootstrap_interval
from persres.metrics.zero_shot_class import (
    Vocabulary,
    ZeroShotResult,
    classify,
    decide,
    noun_probabilities,
    token_counter,
)
from persres.miniworld.concepts import CONCEPTS, views
from persres.miniworld.render import render
from persres.miniworld.vocabulary import words
from persres.models.diffusion import load_diffusion
from persres.models.loading import pick_device
from persres.report.table_text import markdown

ENCODED = 300  # sets that CLIP encodes
# Of those, the sets for the diffusion classifier, and its noise levels per photo: on a CPU, on a GPU.
CLASSIFIED, DRAWS = (40, 300), (2, 4)
BATCH = 20
SEED = 2026  # used neither in training (7) nor in the design of the method (1001, 1002)
BINS = (0.0, 0.5, 0.7, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class PhotoSets:
    """Sets of photos: true class, CLIP features [sets, photos, d], and denoising errors [sets, photos, nouns] of the first sets."""

    truth: list[str]
    features: torch.Tensor
    errors: torch.Tensor


def measure(run: Run, out: Path) -> dict:
    """Classify every set; write ``accuracy.png`` below ``out``; return the summary."""
    profile = load_profile(run.params, "mini")
    run = replace(run, profile=profile)
    nouns = load_candidates(profile.macro_class.candidates)
    encoder = load_clip(profile.encoders.clip, run.device)
    gpu = pick_device(run.device).type == "cuda"
    ten = [([v.image for v in views(c, "reference", PHOTOS, 0)], c.appearance.kind) for c in CONCEPTS]
    concepts = _encode(run, encoder, nouns, ten, (len(ten), DRAWS[gpu]))
    unseen = [_photos(index) for index in range(ENCODED)]
    subjects = _encode(run, encoder, nouns, unseen, (CLASSIFIED[gpu], DRAWS[gpu]))
    summary = _summary(encoder, nouns, concepts, subjects)
    summary["sets"]["draws"] = DRAWS[gpu]
    accuracy_figure(summary, out / "accuracy.png")
    return summary


def _photos(index: int) -> tuple[list, str]:
    """An unseen subject on five backgrounds, and its class."""
    scenes, rng = identity_scenes(replace(RECIPE, seed=SEED, views=PHOTOS), index)
    return [render(scene, rng).image for scene in scenes], scenes[0].subject.kind


def _encode(run: Run, encoder: ClipEncoder, nouns: list[str], sets: list, amount: tuple[int, int]) -> PhotoSets:
    """Features of all sets; denoising errors of the first ``amount[0]`` at ``amount[1]`` noise levels."""
    base, (classified, draws) = run.profile.base, amount
    settings = run.profile.macro_class.zero_shot_settings
    settings = settings.model_copy(update={"noise_levels": draws, "batch_size": BATCH})
    diffusion = load_diffusion(base, run.device)
    prompts, features, errors = [settings.prompt.replace("{}", noun) for noun in nouns], [], []
    with progress("nouns", len(sets), "set") as advance:
        for number, (photos, _) in enumerate(sets):
            features.append(encoder.images(photos))
            if number < classified:
                errors.append(denoising_errors(diffusion, photos, prompts, base.resolution, settings).mean(1))
            advance(1)
    return PhotoSets([kind for _, kind in sets], torch.stack(features), torch.stack(errors))


def _summary(encoder: ClipEncoder, nouns: list[str], concepts: PhotoSets, subjects: PhotoSets) -> dict:
    vocabulary = [word for word in words() if word in load_senses().senses and len(word) > 2]
    few, all_words = _rows(encoder, nouns, subjects), _rows(encoder, vocabulary, subjects, classifier=False)
    ten = _rows(encoder, nouns, concepts)
    original = claims(few, all_words, ten)
    controls = {
        what: claims(few | _zero_shot(_rows(encoder, nouns, sets)), all_words, ten)
        for what, sets in _controls(subjects).items()
    }
    return {
        "claims": original,
        "negative_controls": negative_controls(original, controls),
        "sets": {"encoded": len(subjects.truth), "classified": len(subjects.errors), "photos": PHOTOS, "nouns": len(nouns), "words": len(vocabulary)},
        "accuracy": _accuracy(few, all_words, ten),
        "confidence": _bins(few),
        "concepts": [{"concept": c.name} | row for c, row in zip(CONCEPTS, ten[f"zero_shot_{PHOTOS}"], strict=True)],
        "real_photos": json.loads(RECORD.read_text()) if RECORD.exists() else None,
    }  # fmt: skip


def _controls(subjects: PhotoSets) -> dict[str, PhotoSets]:
    """Negative controls: photos of different subjects in one set, and errors assigned to the wrong nouns."""
    count = len(subjects.errors)
    mixed = {"features": _mixed(subjects.features[:count]), "errors": _mixed(subjects.errors)}
    return {
        "each set's photos show five other subjects": replace(subjects, truth=subjects.truth[:count], **mixed),
        "the diffusion classifier uses the wrong nouns": replace(subjects, errors=subjects.errors.roll(1, 2)),
    }


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Photo j from the set j + 1 places further, [sets, photos, ...]."""
    return torch.stack([values[:, j].roll(-j - 1, 0) for j in range(values.shape[1])], 1)


def _zero_shot(rows: Rows) -> Rows:
    """The zero-shot rows alone: a control is compared with the original nearest noun and encoder."""
    return {name: values for name, values in rows.items() if name.startswith("zero_shot")}


def _rows(encoder: ClipEncoder, nouns: list[str], sets: PhotoSets, classifier: bool = True) -> Rows:
    """By method, a row per set: ``nearest`` (the paper), ``encoder`` (photos, prompts, WordNet), ``zero_shot_k`` (also the diffusion
    classifier, from k photos)."""
    features = encoder.texts([f"a photo of a {noun}" for noun in nouns])
    vocabulary, scale = Vocabulary(nouns, load_senses(), token_counter(encoder)), float(encoder.model.logit_scale.exp())
    rows: Rows = {"nearest": [], "encoder": []}
    for number, (kind, photos) in enumerate(zip(sets.truth, sets.features, strict=True)):
        near = nouns[int((features @ photos.mean(0)).argmax())]
        likely = noun_probabilities(photos, [features], scale)
        rows["nearest"].append({"noun": near, "right": near == kind})
        rows["encoder"].append(_row(classify(likely, vocabulary, len(nouns)), kind))
        if classifier and number < len(sets.errors):
            for k in COUNTS:
                result = decide(nouns, likely[:k], sets.errors[number][:k])
                rows.setdefault(f"zero_shot_{k}", []).append(_row(result, kind) | {"nearest": near, "class": kind})
    return rows


def _row(result: ZeroShotResult, kind: str) -> dict:
    return result.entry() | {"noun": result.noun, "right": result.noun == kind}


def _accuracy(few: Rows, all_words: Rows, ten: Rows) -> list[dict]:
    count, best = len(few[f"zero_shot_{PHOTOS}"]), f"zero_shot_{PHOTOS}"
    lines = [("ten concepts, 8 nouns", name, ten[name]) for name in ("nearest", "encoder", best)]
    lines += [(f"{count} unseen subjects, 8 nouns", name, rows[:count]) for name, rows in few.items()]
    lines += [
        (f"{len(all_words['encoder'])} unseen subjects, all words", name, rows) for name, rows in all_words.items()
    ]
    return [{"sets": sets, "method": method, **_interval(accuracy_of(rows))} for sets, method, rows in lines]


def _interval(values: np.ndarray) -> dict:
    low, high = bootstrap_interval(values, 10_000, 0)
    return {"n": len(values), "mean": float(values.mean()), "low": low, "high": high}


def _bins(rows: Rows) -> list[dict]:
    """Accuracy by confidence, over one to five photos."""
    every, bins = zero_shot_rows(rows), []
    values, right = np.array([row["confidence"] for row in every]), accuracy_of(every)
    for low, high in pairwise(BINS):
        members = (values >= low) & ((values < high) | (high == 1.0))
        if members.any():
            bins.append({"from": low, "to": high, "n": int(members.sum()), "confidence": float(values[members].mean()),
                         "accuracy": float(right[members].mean())})  # fmt: skip
    return bins


def accuracy(summary: dict) -> str:
    """Accuracy of each method."""
    rows = [
        [a["sets"], METHODS[a["method"]], f"{a['mean']:.3f} [{a['low']:.3f}, {a['high']:.3f}]"]
        for a in summary["accuracy"]
    ]
    return markdown(["sets of photos", "class from", "accuracy"], rows)


def confidence(summary: dict) -> str:
    """Accuracy by confidence."""
    rows = [
        [f"{b['from']:g}–{b['to']:g}", str(b["n"]), f"{b['confidence']:.2f}", f"{b['accuracy']:.2f}"]
        for b in summary["confidence"]
    ]
    return markdown(["confidence", "sets", "mean confidence", "accuracy"], rows)


def concepts(summary: dict) -> str:
    """The ten concepts."""
    rows = [
        [c["concept"], c["class"], c["nearest"], c["zero_shot"], f"{c['confidence']:.2f}", f"{c['agreement']:.1f}",
         ", ".join(f"{noun} {share:.2f}" for noun, share in c["zero_shot_top"][1:3])]
        for c in summary["concepts"]
    ]  # fmt: skip
    heads = [
        "concept",
        "dataset",
        "nearest noun",
        "zero-shot",
        "confidence",
        "share of photos that agree",
        "runners-up",
    ]
    return markdown(heads, rows)


def real_photos(summary: dict) -> str:
    """Real subjects, without the diffusion classifier."""
    record = summary["real_photos"]
    return real_photos_table(record) if record else "Not measured yet.\n"


BLOCKS = {f.__name__: f for f in (accuracy, confidence, concepts, real_photos)}
STUDY = Study("zero_shot_class", "Zero-shot macro class", measure, BLOCKS)
