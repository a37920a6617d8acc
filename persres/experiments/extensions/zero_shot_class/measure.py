"""The macro class found by itself against the paper's nearest noun: on the ten concepts, on looks that no model has seen, and on
real photos where they were measured (persres/experiments/extensions/zero_shot_class/real_photos.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import numpy as np
import torch

from persres.config.schema import Profile
from persres.datasets.wordnet import load_candidates
from persres.datasets.wordnet.senses import load_senses
from persres.experiments.extensions.study import Run, Study
from persres.experiments.extensions.verdicts import at_most, claim, verdict
from persres.experiments.extensions.zero_shot_class.real_photos import RECORD, real_table
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

PHOTOS = 5
READ = 300  # sets that CLIP reads
# Of those, the sets that the base model judges too, and its noise levels of each photo: on a CPU, on a GPU.
JUDGED, DRAWS = (40, 300), (2, 4)
SEED = 2026  # of looks that neither training (7) nor the design of the finder (1001, 1002) has seen
SURE = 0.9
BINS = (0.0, 0.5, 0.7, 0.9, 0.99, 1.0)
COUNTS = (1, 2, PHOTOS)


@dataclass(frozen=True)
class PhotoSets:
    """Several sets of photos: true class, CLIP's features [sets, photos, d], the judge's errors [sets, photos, nouns] of the first ones."""

    truth: list[str]
    features: torch.Tensor
    errors: torch.Tensor


def measure(run: Run, out: Path) -> dict:
    """The summary; ``nouns.png`` and ``nouns.md`` into ``out``."""
    profile = load_profile(run.params, "mini")
    nouns = load_candidates(profile.macro_class.candidates)
    encoder = load_clip(profile.encoders.clip, run.device)
    gpu = pick_device(run.device).type == "cuda"
    ten = [([v.image for v in views(c, "reference", PHOTOS, 0)], c.appearance.kind) for c in CONCEPTS]
    concepts = _seen(profile, run, encoder, nouns, ten, len(ten), DRAWS[gpu])
    new = [_photos(index) for index in range(READ)]
    looks = _seen(profile, run, encoder, nouns, new, JUDGED[gpu], DRAWS[gpu])
    summary = _summary(encoder, nouns, concepts, looks)
    summary["sets"]["draws"] = DRAWS[gpu]
    _figure(summary, out / "nouns.png")  # persres.experiments.extensions.redrawn draws it again, more clearly
    (out / "nouns.md").write_text(
        "".join(BLOCKS[name](summary) + "\n" for name in ("accuracy", "confidence", "concepts"))
    )
    return summary


def _photos(index: int) -> tuple[list, str]:
    """A nameless look on five backgrounds, and its class."""
    scenes, rng = identity_scenes(replace(RECIPE, seed=SEED, views=PHOTOS), index)
    return [render(scene, rng).image for scene in scenes], scenes[0].subject.kind


def _seen(
    profile: Profile, run: Run, encoder: ClipEncoder, nouns: list[str], sets: list, judged: int, draws: int
) -> PhotoSets:
    settings = profile.macro_class.zero_shot_settings.model_copy(update={"noise_levels": draws, "batch_size": 20})
    diffusion = load_diffusion(profile.base, run.device)
    prompts, features, errors = [settings.prompt.replace("{}", noun) for noun in nouns], [], []
    with progress("nouns", len(sets), "set") as advance:
        for number, (photos, _) in enumerate(sets):
            features.append(encoder.images(photos))
            if number < judged:
                found = denoising_errors(diffusion, photos, prompts, profile.base.resolution, settings)
                errors.append(found.mean(1))
            advance(1)
    return PhotoSets([kind for _, kind in sets], torch.stack(features), torch.stack(errors))


def _summary(encoder: ClipEncoder, nouns: list[str], concepts: PhotoSets, looks: PhotoSets) -> dict:
    hard = [word for word in words() if word in load_senses().senses and len(word) > 2]
    easy_rows, hard_rows = _rows(encoder, nouns, looks), _rows(encoder, hard, looks, judged=False)
    ten = _rows(encoder, nouns, concepts)
    unbroken = _claims(easy_rows, hard_rows, ten)
    shuffled = replace(
        looks,
        features=_mixed(looks.features[: len(looks.errors)]),
        truth=looks.truth[: len(looks.errors)],
        errors=_mixed(looks.errors),
    )
    turned = replace(looks, errors=looks.errors.roll(1, 2))
    broken = {
        what: _claims(easy_rows | _found_of(_rows(encoder, nouns, sets)), hard_rows, ten)
        for what, sets in (
            ("each set's photos are five other things'", shuffled),
            ("the judge is asked under the wrong nouns", turned),
        )
    }
    return {
        "claims": unbroken,
        "broken": {what: _fallen(unbroken, claims) for what, claims in broken.items()},
        "sets": {
            "read": len(looks.truth),
            "judged": len(looks.errors),
            "photos": PHOTOS,
            "nouns": len(nouns),
            "words": len(hard),
        },
        "accuracy": _accuracy(easy_rows, hard_rows, ten),
        "confidence": _bins(easy_rows),
        "concepts": [{"concept": c.name} | row for c, row in zip(CONCEPTS, ten["found_5"], strict=True)],
        "real": json.loads(RECORD.read_text()) if RECORD.exists() else None,
    }


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Photo j from the set j + 1 places on, [sets, photos, ...]."""
    return torch.stack([values[:, j].roll(-j - 1, 0) for j in range(values.shape[1])], 1)


def _found_of(rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """What is broken; it is held against the unbroken nearest noun and votes."""
    return {name: found for name, found in rows.items() if name.startswith("found")}


def _rows(encoder: ClipEncoder, nouns: list[str], sets: PhotoSets, judged: bool = True) -> dict[str, list[dict]]:
    """By way, a row a set: ``nearest`` (the paper), ``votes`` (photos, prompts and WordNet), ``found_k`` (and the judge, k photos)."""
    features = encoder.texts([f"a photo of a {noun}" for noun in nouns])
    vocabulary, scale = Vocabulary(nouns, load_senses(), token_counter(encoder)), float(encoder.model.logit_scale.exp())
    rows: dict[str, list[dict]] = {"nearest": [], "votes": []}
    for number, (kind, photos) in enumerate(zip(sets.truth, sets.features, strict=True)):
        near = nouns[int((features @ photos.mean(0)).argmax())]
        likely = noun_probabilities(photos, [features], scale)
        rows["nearest"].append({"noun": near, "right": near == kind})
        rows["votes"].append(_row(classify(likely, vocabulary, len(nouns)), kind))
        if judged and number < len(sets.errors):
            for k in COUNTS:
                found = decide(nouns, likely[:k], sets.errors[number][:k])
                rows.setdefault(f"found_{k}", []).append(_row(found, kind) | {"nearest": near, "class": kind})
    return rows


def _row(found: ZeroShotResult, kind: str) -> dict:
    return found.entry() | {"noun": found.noun, "right": found.noun == kind}


def _right(rows: list[dict]) -> np.ndarray:
    return np.array([row["right"] for row in rows], dtype=float)


def _claims(easy: dict, hard: dict, ten: dict) -> list[dict]:
    found = easy[f"found_{PHOTOS}"]
    right, count = _right(found), len(found)
    every = [row for k in COUNTS for row in easy[f"found_{k}"]]
    sure = np.array([row["confidence"] >= SURE for row in every])
    near = _right(easy["nearest"])[:count]
    return [
        claim("found_over_nearest", "the found class is right more often than the nearest noun", "accuracy", right - near, 0.05),
        claim("judge_adds", "the base model's judgement adds to photos, prompts and WordNet", "accuracy",
              right - _right(easy["votes"])[:count], 0.05),
        claim("on_the_concepts", "on the ten concepts too", "accuracy", _right(ten[f"found_{PHOTOS}"]) - _right(ten["nearest"]), 0.1),
        claim("one_photo", "the found class from one photo beats the nearest noun of five", "accuracy", _right(easy["found_1"]) - near, 0.0),
        claim("votes_over_nearest", "photos and prompts without the judge, among all words that it reads, beat the nearest noun", "accuracy",
              _right(hard["votes"]) - _right(hard["nearest"]), 0.02),
        at_most("not_overconfident", "confidence minus accuracy, over one to five photos, stays below .05", "accuracy",
                np.array([row["confidence"] for row in every]) - _right(every), 0.05),
        claim("sure_is_right", f"where it is {SURE:.0%} sure it is right more often than over all", "accuracy",
              _right(every)[sure] - _right(every).mean(), 0.0),
    ]  # fmt: skip


# What each break must take with it: shuffled photos leave nothing to agree on, a judge of wrong nouns misleads.
LEANS = ("found_over_nearest", "judge_adds")


def _fallen(unbroken: list[dict], broken: list[dict]) -> dict[str, str]:
    pairs = {one["claim"]: verdict(one, other) for one, other in zip(unbroken, broken, strict=True)}
    return {name: pairs[name] for name in LEANS}


def _accuracy(easy: dict, hard: dict, ten: dict) -> list[dict]:
    count = len(easy[f"found_{PHOTOS}"])
    lines = [("ten concepts, 8 nouns", name, ten[name]) for name in ("nearest", "votes", f"found_{PHOTOS}")]
    lines += [(f"{count} new looks, 8 nouns", name, rows[:count]) for name, rows in easy.items()]
    lines += [(f"{len(hard['votes'])} new looks, all words", name, rows) for name, rows in hard.items()]
    return [{"sets": sets, "way": way, **_interval(_right(rows))} for sets, way, rows in lines]


def _interval(values: np.ndarray) -> dict:
    low, high = bootstrap_interval(values, 10_000, 0)
    return {"n": len(values), "mean": float(values.mean()), "low": low, "high": high}


def _bins(easy: dict) -> list[dict]:
    """Accuracy by confidence, over one to five photos."""
    every = [row for k in COUNTS for row in easy[f"found_{k}"]]
    said, right, found = np.array([row["confidence"] for row in every]), _right(every), []
    for low, high in pairwise(BINS):
        inside = (said >= low) & ((said < high) | (high == 1.0))
        if inside.any():
            found.append({"from": low, "to": high, "n": int(inside.sum()), "confidence": float(said[inside].mean()),
                          "accuracy": float(right[inside].mean())})  # fmt: skip
    return found


METHODS = {
    "nearest": "nearest noun (paper)",
    "votes": "photos, prompts, WordNet",
    "found_1": "found, from 1 photo",
    "found_2": "found, from 2 photos",
    "found_5": "found, from 5 photos",
}


def accuracy(summary: dict) -> str:
    """How often each way is right."""
    rows = [
        [a["sets"], METHODS[a["way"]], f"{a['mean']:.3f} [{a['low']:.3f}, {a['high']:.3f}]"]
        for a in summary["accuracy"]
    ]
    return markdown(["sets of photos", "class by", "right"], rows)


def confidence(summary: dict) -> str:
    """How often it is right at each confidence."""
    rows = [
        [f"{b['from']:g}–{b['to']:g}", str(b["n"]), f"{b['confidence']:.2f}", f"{b['accuracy']:.2f}"]
        for b in summary["confidence"]
    ]
    return markdown(["confidence", "sets", "its mean", "right"], rows)


def concepts(summary: dict) -> str:
    """The ten concepts, one by one."""
    rows = [
        [c["concept"], c["class"], c["nearest"], c["found"], f"{c['confidence']:.2f}", f"{c['agreement']:.1f}",
         ", ".join(f"{noun} {share:.2f}" for noun, share in c["zero_shot_top"][1:3])]
        for c in summary["concepts"]
    ]  # fmt: skip
    return markdown(["concept", "dataset", "nearest noun", "found", "confidence", "photos that agree", "then"], rows)


def photos(summary: dict) -> str:
    """Real subjects, where they were measured."""
    return real_table(summary["real"]) if summary["real"] else "Not measured yet: `persres dev real-classes` does.\n"


def _figure(summary: dict, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    rows = summary["accuracy"]
    for y, row in enumerate(reversed(rows)):
        left.plot([row["low"], row["high"]], [y, y], color="tab:blue")
        left.plot(row["mean"], y, "o", color="tab:blue")
    left.set_yticks(range(len(rows)), [f"{r['sets']}: {METHODS[r['way']]}" for r in reversed(rows)], fontsize=7)
    left.set(xlabel="right, with 95% interval", xlim=(0.3, 1.02))
    bins = summary["confidence"]
    right.plot([0, 1], [0, 1], ":", color="grey")
    right.scatter([b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=[10 + 2 * b["n"] for b in bins])
    right.set(xlabel="confidence", ylabel="right", xlim=(0, 1.02), ylim=(0, 1.05))
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": ""})
    plt.close(figure)


BLOCKS = {f.__name__: f for f in (accuracy, confidence, concepts, photos)}
MODULES = (
    "persres.experiments.extensions.zero_shot_class.measure",
    "persres.metrics.zero_shot_class",
    "persres.experiments.miniworld_training.scenes",
)
STUDY = Study("nouns", measure, MODULES, BLOCKS)
