"""Scenes of the localisation measurement: nameable subjects, and the concepts on unseen backgrounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persres.experiments.evidence.localisation import Case, latent_truth
from persres.experiments.miniworld_training.captions import noun_phrase
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import random_appearance, scene_at
from persres.images import to_tensor
from persres.miniworld.concepts import Concept
from persres.miniworld.render import Rendered, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, STYLES
from persres.models.diffusion import Diffusion, posterior
from persres.seeding import seed_from


def _case(diffusion: Diffusion, images: list[Rendered], prompts: list[str], classes: list[str], token: str) -> Case:
    """The case of rendered images, without those whose object is too small or fills everything at the latents' resolution."""
    latents, _ = posterior(diffusion.vae, to_tensor([one.image for one in images]))
    truth = latent_truth(np.stack([one.masks[0] for one in images]), latents.shape[-1])
    valid = truth.flatten(1).any(1) & ~truth.flatten(1).all(1)
    rows = valid.nonzero().flatten().tolist()
    return Case(latents[valid], truth[valid], [prompts[i] for i in rows], [classes[i] for i in rows], token)


def nameable_case(diffusion: Diffusion, count: int, token: str) -> Case:
    """Return scenes that no model was trained on, in all styles, a fifth with a second object; V* before the class."""
    rendered, prompts, classes = [], [], []
    for index in range(count):
        scene, rng = scene_at(RECIPE, "localise", index)
        rendered.append(render(scene, rng))
        second = f" next to {noun_phrase(scene.second)}" if scene.second is not None else ""
        subject = noun_phrase(scene.subject, rare=token)
        prompts.append(f"{STYLES[scene.style]} {subject}{second} {BACKGROUNDS[scene.background]}")
        classes.append(scene.subject.kind)
    return _case(diffusion, rendered, prompts, classes, token)


def concept_case(diffusion: Diffusion, concept: Concept, count: int, token: str) -> Case:
    """Return one concept on backgrounds that its references do not show."""
    unseen = [name for name in BACKGROUNDS if name not in concept.backgrounds]
    rendered, prompts = [], []
    for index in range(count):
        background = unseen[index % len(unseen)]
        rng = np.random.default_rng(seed_from("localise", concept.name, index))
        rendered.append(render(Scene(concept.appearance, background), rng))
        prompts.append(f"a photo of a {token} {concept.appearance.kind} {BACKGROUNDS[background]}")
    return _case(diffusion, rendered, prompts, [concept.appearance.kind] * count, token)


def two_object_case(diffusion: Diffusion, concept: Concept, count: int, token: str) -> Case:
    """Return one concept next to an object of another class, on backgrounds that its references do not show."""
    unseen = [name for name in BACKGROUNDS if name not in concept.backgrounds]
    others = [kind for kind in RECIPE.kinds if kind != concept.appearance.kind]
    rendered, prompts = [], []
    for index in range(count):
        background = unseen[index % len(unseen)]
        rng = np.random.default_rng(seed_from("beside", concept.name, index))
        second = replace(random_appearance(RECIPE, rng), kind=others[index % len(others)])
        rendered.append(render(Scene(concept.appearance, background, second=second), rng))
        prompts.append(
            f"a photo of a {token} {concept.appearance.kind} next to {noun_phrase(second)} {BACKGROUNDS[background]}"
        )
    return _case(diffusion, rendered, prompts, [concept.appearance.kind] * count, token)


def joined(cases: list[Case]) -> Case:
    """Return the scenes of several cases as one case."""
    return Case(
        torch.cat([c.latents for c in cases]),
        torch.cat([c.truth for c in cases]),
        [p for c in cases for p in c.prompts],
        [k for c in cases for k in c.classes],
        cases[0].token,
    )
