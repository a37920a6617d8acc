"""Scores after any number of training steps, and the losses that the early-stopping rule sees.

One 300-step training per concept, with its factors saved every five steps, serves every number of steps: the learning rate is constant
and the random draws depend on the step, so the state after s steps equals that of a training of s steps.

Two sets of subjects: ten unseen ones, on which the rule's constants were chosen, and the ten concepts. The work is done in units
(persres/units/unit.py), so an interrupted run resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from persres.config.schema import Base, Encoders, Profile, SamplingConfig
from persres.datasets.layout import spread_prompts
from persres.images import to_images, to_tensor
from persres.methods.ours import Ours
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.object_crops import object_alignment, object_crops
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier, matches_prompt
from persres.miniworld.concepts import CONCEPTS, Concept, concept_prompts, views
from persres.miniworld.identities import random_identity
from persres.miniworld.vocabulary import BACKGROUNDS
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import model_identity
from persres.package_paths import located
from persres.prompts import fill
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.sampling.sample import Request, sample_batch
from persres.seeding import seed_from
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank, train
from persres.units.checkpoints import read_tensors, write_tensors
from persres.units.files import write_atomic
from persres.units.pool import UnitFunction, run_units
from persres.units.specs import FileRef, ImageSpec, Spec
from persres.units.unit import Unit, finish

LONGEST, EVERY = 300, 5  # steps of the training, and between two saved states
CURVE = (0, 10, 25, 50, 75, 100, 125, 150, 200, 300)
PHOTOS = 5
CURVE_PROMPTS = 8  # of 20; the claims use all
BATCH = {"cuda": 160, "cpu": 16}
SAMPLING = SamplingConfig(variant="ours", steps=25, images_per_prompt=2)
COLUMNS = ("dino", "clip_image", "dino_object", "clip_text", "followed")


def nameless(index: int) -> Concept:
    """Return an unseen subject with one background or two, as the concepts have."""
    rng = np.random.default_rng(seed_from("stopping", index))
    identity = random_identity(rng)
    return Concept(f"nameless_{index}", identity, tuple(map(str, rng.permutation(list(BACKGROUNDS))[: 1 + index % 2])))


SETS: dict[str, tuple[Concept, ...]] = {"tuning": tuple(nameless(i) for i in range(10)), "test": CONCEPTS}


SUBJECTS = {concept.name: concept for concepts in SETS.values() for concept in concepts}


class TraceSpec(Spec):
    """One subject's 300-step training, and the training that the rule ends."""

    base: Base
    model: str
    subject: str
    settings: Ours
    longest: int
    code: str


class ScoreSpec(Spec):
    """Scores of images by the state after ``steps`` steps. ``prompts``: their numbers."""

    learned: TraceSpec
    steps: int
    prompts: tuple[int, ...]
    sampling: SamplingConfig
    encoders: Encoders
    classifier: FileRef
    code: str


def photos(concept: Concept) -> list[Image.Image]:
    """Return the photos that a concept is trained on."""
    return [view.image for view in views(concept, "reference", PHOTOS, 0)]


def encoded_concept(diffusion: Diffusion, spec: TraceSpec) -> EncodedConcept:
    """Return the training data as persres/methods/ours.py encodes it."""
    concept = SUBJECTS[spec.subject]
    text = diffusion.encode([fill(spec.settings.prompt, f"{spec.base.token} {concept.appearance.kind}")])
    return EncodedConcept(concept.name, *diffusion.posterior(to_tensor(photos(concept))), text)


def _bank(diffusion: Diffusion, settings: Ours, data: list[EncodedConcept]) -> ResidualBank:
    targets = find_targets(diffusion.unet, settings.rank_ratio, settings.rank, settings.target)
    return new_bank(targets, data, settings).to(diffusion.unet.device)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class TraceRecorder:
    """Observes a training: saves the bank's ``states``, and the rule's ``losses`` at its fixed draws and at other draws each time.
    ``seconds``: the time that this took."""

    def __init__(self, diffusion: Diffusion, data: list[EncodedConcept], bank: ResidualBank, settings: Ours) -> None:
        self.bank, self.settings = bank, settings
        self.loss, self.data = partial(ResidualLoss, diffusion.unet, diffusion.scheduler, bank), data
        self.states: dict[str, torch.Tensor] = {}
        self.losses: dict[str, list[float]] = {"fixed": [], "other": []}
        self.seconds = 0.0

    def record(self, finished: int) -> None:
        """Record the state after ``finished`` steps."""
        begun = _now()
        if finished % EVERY == 0:
            self.states |= {f"{finished}/{k}": v.detach().cpu().clone() for k, v in self.bank.state_dict().items()}
        if finished % self.settings.early_stop_every == 0:
            for name, seed in (("fixed", self.settings.seed), ("other", 1 + finished)):
                loss = self.loss(self.settings.model_copy(update={"seed": seed}))
                self.losses[name].append(loss.early_stopping(self.data).measure(0))
        self.seconds += _now() - begun


def trace_unit(unit: Unit[TraceSpec], work: Path, device: str) -> None:
    """Write ``trace.json`` and ``states.safetensors`` (the saved states).

    The trace: ``loss`` of every step; ``fixed`` and ``other``, the rule's losses before the first step and at every check; ``seconds`` of
    the settings' steps without recording; ``ruled``, see :func:`_ruled`.
    """
    spec, folder = unit.spec, unit.folder(work)
    diffusion = load_diffusion(spec.base, device)
    data = [encoded_concept(diffusion, spec)]
    bank = _bank(diffusion, spec.settings, data)
    recorder, trace = TraceRecorder(diffusion, data, bank, spec.settings), {}
    recorder.record(0)
    begun, before = _now(), recorder.seconds

    def on_step(step: int, loss: float) -> None:
        if step + 1 == spec.settings.steps:
            trace["seconds"] = _now() - begun - (recorder.seconds - before)
        recorder.record(step + 1)

    settings = spec.settings.model_copy(update={"steps": spec.longest, "stop": "steps"})
    log = train(ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings), data, on_step=on_step)
    trace |= {"loss": [row["loss"][0] for row in log], **recorder.losses}
    trace["ruled"] = _ruled(diffusion, data, spec.settings, recorder.states)
    write_tensors(folder / "states.safetensors", recorder.states, {})
    write_atomic(folder / "trace.json", json.dumps(trace).encode())
    finish(unit, work, [folder / "trace.json", folder / "states.safetensors"])


def _ruled(diffusion: Diffusion, data: list[EncodedConcept], settings: Ours, states: dict[str, torch.Tensor]) -> dict:
    """A training by the rule: its ``steps``, its ``seconds`` with checks, and ``difference``, the largest difference of a factor from
    the 300-step training's state at that step (None if that state was not saved)."""
    bank, begun = _bank(diffusion, settings, data), _now()
    steps = len(train(ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings), data))
    seconds = _now() - begun
    saved = at_step(states, steps)
    differences = [float((saved[k] - v.cpu()).abs().max()) for k, v in bank.state_dict().items()] if saved else []
    return {"steps": steps, "seconds": seconds, "difference": max(differences, default=None)}


def at_step(states: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """Return the factors after ``steps`` steps by their names in the bank; empty if not saved."""
    return {key.split("/")[1]: value for key, value in states.items() if key.startswith(f"{steps}/")}


def image_specs(spec: ScoreSpec) -> list[tuple[ImageSpec, str]]:
    """Return the images to sample, each with its prompt template."""
    concept, token = SUBJECTS[spec.learned.subject], spec.learned.base.token
    kind = concept.appearance.kind
    templates = [text for _, text in concept_prompts(kind, concept.backgrounds)]
    return [
        (ImageSpec(name=f"{n:02d}_{i:03d}", prompt=fill(templates[n], f"{token} {kind}"), phrase=f"{token} {kind}",
              plain=fill(templates[n], kind), image=i), templates[n])
        for n in spec.prompts
        for i in range(spec.sampling.images_per_prompt)
    ]  # fmt: skip


def score_unit(unit: Unit[ScoreSpec], work: Path, device: str) -> None:
    """Write ``scores.csv``: one row per image, :data:`COLUMNS`."""
    spec, folder = unit.spec, unit.folder(work)
    diffusion, learned = load_diffusion(spec.learned.base, device), unit_of(spec.learned).folder(work)
    bank = _bank(diffusion, spec.learned.settings, [encoded_concept(diffusion, spec.learned)])
    bank.load_state_dict(at_step(read_tensors(learned / "states.safetensors")[0], spec.steps))
    batch, specs, images = BATCH[diffusion.unet.device.type], image_specs(spec), []
    for start in range(0, len(specs), batch):
        part = [one for one, _ in specs[start : start + batch]]
        requests = [Request(part, spec.sampling, bank)]
        images += to_images(sample_batch(diffusion, requests, spec.learned.base.resolution)[0][0])
    rows = _scores(spec, device, images, specs)
    write_atomic(folder / "scores.csv", rows.to_csv(index=False).encode())
    finish(unit, work, [folder / "scores.csv"])


def _scores(
    spec: ScoreSpec, device: str, images: list[Image.Image], specs: list[tuple[ImageSpec, str]]
) -> pd.DataFrame:
    """Scores as persres/metrics/score_units.py computes them."""
    clip, dino = load_clip(spec.encoders.clip, device), load_dino(spec.encoders.dino, device)
    classify = partial(classify_images, load_attribute_classifier(Path(spec.classifier.path)))
    references, features = photos(SUBJECTS[spec.learned.subject]), clip.images(images)
    pixels, reference_pixels = (np.stack([np.asarray(image) for image in some]) for some in (images, references))
    verdict, truth = classify(pixels), classify(reference_pixels)
    objects = dino.images(object_crops(pixels, verdict.masks))
    reference_objects = dino.images(object_crops(reference_pixels, truth.masks))
    rows = pd.DataFrame({"image": [one.name for one, _ in specs]})
    rows["dino"] = alignment(dino.images(images), dino.images(references)).double().numpy()
    rows["clip_image"] = alignment(features, clip.images(references)).double().numpy()
    rows["dino_object"] = object_alignment(objects, reference_objects, verdict.masks)
    rows["clip_text"] = clip_text_score(features, clip.texts([one.plain for one, _ in specs])).double().numpy()
    rows["followed"] = matches_prompt(verdict, [text for _, text in specs])
    return rows


def unit_of(spec: TraceSpec) -> Unit[TraceSpec]:
    """Return the unit of a trace."""
    return Unit("early_stopping_trace", spec.subject, spec)


@dataclass(frozen=True)
class TraceRunner:
    """Runs the units of the study; holds the settings that they share."""

    profile: Profile
    settings: Ours
    work: Path
    device: str
    code: str

    def _run(self, units: list[Unit], function: UnitFunction) -> None:
        run_units(units, self.work, function, self.profile.runtime.workers, self.device)

    def _learning(self, subject: str) -> Unit[TraceSpec]:
        base = self.profile.base
        return unit_of(TraceSpec(base=base, model=model_identity(base.model), subject=subject, settings=self.settings,
                                  longest=LONGEST, code=self.code))  # fmt: skip

    def traces(self, subjects: Iterable[str]) -> dict[str, dict]:
        """Return each subject's trace (:func:`trace_unit`)."""
        units = {subject: self._learning(subject) for subject in subjects}
        self._run(list(units.values()), trace_unit)
        return {name: json.loads((unit.folder(self.work) / "trace.json").read_text()) for name, unit in units.items()}

    def _score_units(self, subject: str, steps: int, every: bool) -> list[Unit[ScoreSpec]]:
        """A unit for the prompts of the curves, and with ``every`` a second unit for the other prompts."""
        concept, classifier = SUBJECTS[subject], FileRef.of(Path(located(self.profile.score.attribute_classifier)))
        prompts = tuple(concept_prompts(concept.appearance.kind, concept.backgrounds))
        few = tuple(number for number, _, _ in spread_prompts(prompts, CURVE_PROMPTS))
        rest = tuple(number for number in range(len(prompts)) if number not in few)
        return [
            Unit("early_stopping_score", f"{subject}/{steps}{part}",
                 ScoreSpec(learned=self._learning(subject).spec, steps=steps, prompts=numbers, sampling=SAMPLING,
                              encoders=self.profile.encoders, classifier=classifier, code=self.code))
            for part, numbers in (("", few), ("/rest", rest))[: 1 + every]
        ]  # fmt: skip

    def means(self, pairs: Iterable[tuple[str, int]], every: bool) -> pd.DataFrame:
        """Return mean scores of each (subject, steps), one row each, on the curves' prompts or on ``every`` prompt."""
        units = {pair: self._score_units(*pair, every) for pair in pairs}
        self._run([unit for some in units.values() for unit in some], score_unit)
        rows = []
        for (subject, steps), some in units.items():
            scores = pd.concat([pd.read_csv(unit.folder(self.work) / "scores.csv") for unit in some])
            rows.append({"concept": subject, "steps": steps, **scores[list(COLUMNS)].mean()})
        return pd.DataFrame(rows)
