"""The scenes of the localisation measurement: nameable ones, and the concepts where they were never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persres.experiments.evidence.localisation import Case, latent_truth
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import random_appearance, scene_at
from persres.images import to_tensor
from persres.miniworld.captions import noun_phrase
from persres.miniworld.concepts import CONCEPTS, Concept
from persres.miniworld.render import Rendered, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, STYLES
from persres.models.diffusion import Diffusion, posterior
from persres.seeding import seed_from


def _case(diffusion: Diffusion, drawn: list[Rendered], prompts: list[str], classes: list[str]) -> Case:
    latents, _ = posterior(diffusion.vae, to_tensor([picture.image for picture in drawn]))
    truth = latent_truth(np.stack([picture.masks[0] for picture in drawn]), latents.shape[-1])
    keep = truth.flatten(1).any(1) & ~truth.flatten(1).all(1)
    rows = keep.nonzero().flatten().tolist()
    return Case(latents[keep], truth[keep], [prompts[i] for i in rows], [classes[i] for i in rows])


def nameable_case(diffusion: Diffusion, count: int, token: str) -> Case:
    """Scenes that no model was trained on, in all styles, a fifth with a second object; V* before the class."""
    drawn, prompts, classes = [], [], []
    for index in range(count):
        scene, rng = scene_at(RECIPE, "localise", index)
        drawn.append(render(scene, rng))
        second = f" next to {noun_phrase(scene.second)}" if scene.second is not None else ""
        subject = noun_phrase(scene.subject, rare=token)
        prompts.append(f"{STYLES[scene.style]} {subject}{second} {BACKGROUNDS[scene.background]}")
        classes.append(scene.subject.kind)
    return _case(diffusion, drawn, prompts, classes)


def concept_case(diffusion: Diffusion, concept: Concept, count: int, token: str) -> Case:
    """One concept on backgrounds that its references do not show."""
    elsewhere = [name for name in BACKGROUNDS if name not in concept.backgrounds]
    drawn, prompts = [], []
    for index in range(count):
        background = elsewhere[index % len(elsewhere)]
        rng = np.random.default_rng(seed_from("localise", concept.name, index))
        drawn.append(render(Scene(concept.appearance, background), rng))
        prompts.append(f"a photo of a {token} {concept.appearance.kind} {BACKGROUNDS[background]}")
    return _case(diffusion, drawn, prompts, [concept.appearance.kind] * count)


def two_object_case(diffusion: Diffusion, concept: Concept, count: int, token: str) -> Case:
    """One concept beside a second object of another class, in places that its references do not show."""
    elsewhere = [name for name in BACKGROUNDS if name not in concept.backgrounds]
    others = [kind for kind in RECIPE.kinds if kind != concept.appearance.kind]
    drawn, prompts = [], []
    for index in range(count):
        background, rng = (
            elsewhere[index % len(elsewhere)],
            np.random.default_rng(seed_from("beside", concept.name, index)),
        )
        second = replace(random_appearance(RECIPE, rng), kind=others[index % len(others)])
        drawn.append(render(Scene(concept.appearance, background, second=second), rng))
        prompts.append(
            f"a photo of a {token} {concept.appearance.kind} next to {noun_phrase(second)} {BACKGROUNDS[background]}"
        )
    return _case(diffusion, drawn, prompts, [concept.appearance.kind] * count)


def concept_named(name: str) -> Concept:
    """One of the mini world's concepts."""
    return next(concept for concept in CONCEPTS if concept.name == name)


def joined(cases: list[Case]) -> Case:
    """All scenes of several cases."""
    return Case(
        torch.cat([c.latents for c in cases]),
        torch.cat([c.truth for c in cases]),
        [p for c in cases for p in c.prompts],
        [k for c in cases for k in c.classes],
    )
