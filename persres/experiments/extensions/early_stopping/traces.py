"""Pictures of concepts after so and so many steps of training, and what the rule of when to stop sees of them meanwhile.

One training of each concept, with its factors kept every five steps, serves every number of steps: the rate is constant and a step's draws
belong to the step, so what stands after s steps is what a training of s steps gives (persres/training/residual_training.py).

Two sets of subjects: ten nameless looks, which no model was trained on and on which the rule's constants were chosen, and the
ten concepts. The work is done in units (persres/units/unit.py), side by side, so a killed run goes on.
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
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import random_identity
from persres.images import to_images, to_tensor
from persres.methods.ours import Ours
from persres.metrics.clip_scores import alignment, clip_text_score, load_clip
from persres.metrics.dino_scores import load_dino
from persres.metrics.object_crops import object_alignment, object_crops
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier, matches_prompt
from persres.miniworld.captions import concept_prompts
from persres.miniworld.concepts import CONCEPTS, Concept, views
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
from persres.units.pool import Work, run_units
from persres.units.specs import FileRef, ImageSpec, Spec
from persres.units.unit import Unit, finish

LONGEST, EVERY = 300, 5  # steps of the one training, and between two of its kept states
CURVE = (0, 10, 25, 50, 75, 100, 125, 150, 200, 300)
PHOTOS, SEEDS, CURVE_PROMPTS, ALL = (
    5,
    2,
    8,
    20,
)  # of 20 prompts, each drawn twice: eight for the curves, all where a claim is made
SAMPLING = SamplingConfig(variant="ours", steps=25, images_per_prompt=2)
COLUMNS = ("dino", "clip_image", "dino_object", "clip_text", "followed")


def nameless(index: int) -> Concept:
    """A look that the models never saw, photographed in one background or two as the concepts are."""
    rng = np.random.default_rng(seed_from("stopping", index))
    look = random_identity(RECIPE, rng)
    return Concept(f"nameless_{index}", look, tuple(map(str, rng.permutation(list(BACKGROUNDS))[: 1 + index % 2])))


SETS: dict[str, tuple[Concept, ...]] = {"tuning": tuple(nameless(i) for i in range(10)), "test": CONCEPTS}


SUBJECTS = {concept.name: concept for concepts in SETS.values() for concept in concepts}


class TraceSpec(Spec):
    """One subject's long training, and the one that the rule ends."""

    base: Base
    model: str
    subject: str
    settings: Ours
    longest: int
    code: str


class ScoreSpec(Spec):
    """Pictures by what was learned in so many steps, measured. ``prompts``: their numbers."""

    learned: TraceSpec
    steps: int
    prompts: tuple[int, ...]
    sampling: SamplingConfig
    encoders: Encoders
    judge: FileRef
    code: str


def photos(concept: Concept) -> list[Image.Image]:
    """What a concept is learned from."""
    return [view.image for view in views(concept, "reference", PHOTOS, 0)]


def encoded_concept(diffusion: Diffusion, spec: TraceSpec) -> EncodedConcept:
    """As the method reads it (persres/methods/ours.py)."""
    concept = SUBJECTS[spec.subject]
    text = diffusion.encode([fill(spec.settings.prompt, f"{spec.base.token} {concept.appearance.kind}")])
    return EncodedConcept(concept.name, *diffusion.posterior(to_tensor(photos(concept))), text)


def _bank(diffusion: Diffusion, settings: Ours, lessons: list[EncodedConcept]) -> ResidualBank:
    targets = find_targets(diffusion.unet, settings.rank_ratio, settings.rank, settings.target)
    return new_bank(targets, lessons, settings).to(diffusion.unet.device)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class TraceRecorder:
    """Looks at a training as it goes on: keeps the bank's ``states``, and asks the rule's ``measure`` at its fixed draws and at other draws
    each time (the rule, broken). ``looked``: seconds that this took."""

    def __init__(self, diffusion: Diffusion, lessons: list[EncodedConcept], bank: ResidualBank, settings: Ours) -> None:
        self.bank, self.settings = bank, settings
        self.loss = partial(ResidualLoss, diffusion.unet, diffusion.scheduler, bank)
        self.lessons = lessons
        self.states: dict[str, torch.Tensor] = {}
        self.losses: dict[str, list[float]] = {"fixed": [], "other": []}
        self.looked = 0.0

    def look(self, finished: int) -> None:
        """After so many steps."""
        begun = _now()
        if finished % EVERY == 0:
            self.states |= {f"{finished}/{k}": v.detach().cpu().clone() for k, v in self.bank.state_dict().items()}
        if finished % self.settings.early_stop_every == 0:
            for name, seed in (("fixed", self.settings.seed), ("other", 1 + finished)):
                loss = self.loss(self.settings.model_copy(update={"seed": seed}))
                measure = loss.early_stopping(self.lessons).measure
                self.losses[name].append(measure(0))
        self.looked += _now() - begun


def trace_unit(unit: Unit[TraceSpec], work: Path, device: str) -> None:
    """``trace.json``: ``loss`` of every step; ``fixed`` and ``other``, the rule's losses before the first step and at every check;
    ``seconds`` of the settings' steps without these looks; ``ruled``, see :func:`_ruled`. ``states.safetensors``: the kept states."""
    spec, folder = unit.spec, unit.folder(work)
    diffusion = load_diffusion(spec.base, device)
    lessons = [encoded_concept(diffusion, spec)]
    bank = _bank(diffusion, spec.settings, lessons)
    watch, found = TraceRecorder(diffusion, lessons, bank, spec.settings), {}
    watch.look(0)
    begun, before = _now(), watch.looked

    def on_step(step: int, loss: float) -> None:
        if step + 1 == spec.settings.steps:
            found["seconds"] = _now() - begun - (watch.looked - before)
        watch.look(step + 1)

    settings = spec.settings.model_copy(update={"steps": spec.longest, "stop": "steps"})
    log = train(ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings), lessons, on_step=on_step)
    found |= {"loss": [row["loss"][0] for row in log], **watch.losses}
    found["ruled"] = _ruled(diffusion, lessons, spec.settings, watch.states)
    write_tensors(folder / "states.safetensors", watch.states, {})
    write_atomic(folder / "trace.json", json.dumps(found).encode())
    finish(unit, work, [folder / "trace.json", folder / "states.safetensors"])


def _ruled(
    diffusion: Diffusion, lessons: list[EncodedConcept], settings: Ours, states: dict[str, torch.Tensor]
) -> dict:
    """A training by the rule: ``steps`` done, its ``seconds`` with its checks, and how far its factors are from the long training's after as
    many (``apart``, the largest difference; None where that state was not kept)."""
    bank, begun = _bank(diffusion, settings, lessons), _now()
    steps = len(train(ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings), lessons))
    seconds = _now() - begun
    kept = at_step(states, steps)
    apart = max(float((kept[k] - v.cpu()).abs().max()) for k, v in bank.state_dict().items()) if kept else None
    return {"steps": steps, "seconds": seconds, "apart": apart}


def at_step(states: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """The factors after so many steps, by their names in the bank; empty where they were not kept."""
    return {key.split("/")[1]: value for key, value in states.items() if key.startswith(f"{steps}/")}


def image_specs(spec: ScoreSpec) -> list[tuple[ImageSpec, str]]:
    """Pictures to draw, each with its prompt's template."""
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
    """``scores.csv``: one row a picture, :data:`COLUMNS`."""
    spec, folder = unit.spec, unit.folder(work)
    diffusion, learned = load_diffusion(spec.learned.base, device), unit_of(spec.learned).folder(work)
    bank = _bank(diffusion, spec.learned.settings, [encoded_concept(diffusion, spec.learned)])
    bank.load_state_dict(at_step(read_tensors(learned / "states.safetensors")[0], spec.steps))
    # a GPU is idle with few pictures, a core gains nothing by many
    batch = 160 if diffusion.unet.device.type == "cuda" else 16
    wanted, pictures = image_specs(spec), []
    for start in range(0, len(wanted), batch):
        some = [item for item, _ in wanted[start : start + batch]]
        pictures += to_images(
            sample_batch(diffusion, [Request(some, spec.sampling, bank)], spec.learned.base.resolution)[0][0]
        )
    rows = _scored(spec, device, pictures, wanted)
    write_atomic(folder / "scores.csv", rows.to_csv(index=False).encode())
    finish(unit, work, [folder / "scores.csv"])


def _scored(
    spec: ScoreSpec, device: str, pictures: list[Image.Image], wanted: list[tuple[ImageSpec, str]]
) -> pd.DataFrame:
    """As persres/metrics/score_units.py does."""
    clip, dino = load_clip(spec.encoders.clip, device), load_dino(spec.encoders.dino, device)
    judge = partial(classify_images, load_attribute_classifier(Path(spec.judge.path)))
    references, features = photos(SUBJECTS[spec.learned.subject]), clip.images(pictures)
    own, theirs = (np.stack([np.asarray(image) for image in images]) for images in (pictures, references))
    said, truth = judge(own), judge(theirs)
    alone, whole = dino.images(object_crops(own, said.masks)), dino.images(object_crops(theirs, truth.masks))
    rows = pd.DataFrame({"picture": [item.name for item, _ in wanted]})
    rows["dino"] = alignment(dino.images(pictures), dino.images(references)).double().numpy()
    rows["clip_image"] = alignment(features, clip.images(references)).double().numpy()
    rows["dino_object"] = object_alignment(alone, whole, said.masks)
    rows["clip_text"] = clip_text_score(features, clip.texts([i.plain for i, _ in wanted])).double().numpy()
    rows["followed"] = matches_prompt(said, [text for _, text in wanted])
    return rows


def unit_of(spec: TraceSpec) -> Unit[TraceSpec]:
    """Its unit."""
    return Unit("beyond_stopping_learn", spec.subject, spec)


@dataclass(frozen=True)
class TraceRunner:
    """The settings that all units share, and where they work."""

    profile: Profile
    settings: Ours
    work: Path
    device: str
    code: str

    def _run(self, units: list[Unit], function: Work) -> None:
        run_units(units, self.work, function, self.profile.runtime.workers, self.device)

    def _learning(self, subject: str) -> Unit[TraceSpec]:
        base = self.profile.base
        return unit_of(TraceSpec(base=base, model=model_identity(base.model), subject=subject, settings=self.settings,
                                  longest=LONGEST, code=self.code))  # fmt: skip

    def traces(self, subjects: Iterable[str]) -> dict[str, dict]:
        """Each subject's ``trace.json`` (:func:`learn_unit`)."""
        units = {subject: self._learning(subject) for subject in subjects}
        self._run(list(units.values()), trace_unit)
        return {name: json.loads((unit.folder(self.work) / "trace.json").read_text()) for name, unit in units.items()}

    def _pictures(self, subject: str, steps: int, every: bool) -> list[Unit[ScoreSpec]]:
        """The few prompts of the curves, and where every prompt is wanted the others too, as a unit of their own."""
        concept, judge = SUBJECTS[subject], FileRef.of(Path(located(self.profile.score.attribute_classifier)))
        prompts = tuple(concept_prompts(concept.appearance.kind, concept.backgrounds))
        few = tuple(number for number, _, _ in spread_prompts(prompts, CURVE_PROMPTS))
        rest = tuple(number for number in range(len(prompts)) if number not in few)
        return [
            Unit("beyond_stopping_pictures", f"{subject}/{steps}{part}",
                 ScoreSpec(learned=self._learning(subject).spec, steps=steps, prompts=numbers, sampling=SAMPLING,
                              encoders=self.profile.encoders, judge=judge, code=self.code))
            for part, numbers in (("", few), ("/rest", rest))[: 1 + every]
        ]  # fmt: skip

    def means(self, wanted: Iterable[tuple[str, int]], every: bool) -> pd.DataFrame:
        """Mean scores of each (subject, steps), on the curves' few prompts or on ``every`` prompt; one row a pair."""
        units = {pair: self._pictures(*pair, every) for pair in wanted}
        self._run([unit for some in units.values() for unit in some], score_unit)
        rows = []
        for (subject, steps), some in units.items():
            drawn = pd.concat([pd.read_csv(unit.folder(self.work) / "scores.csv") for unit in some])
            rows.append({"concept": subject, "steps": steps, **drawn[list(COLUMNS)].mean()})
        return pd.DataFrame(rows)
