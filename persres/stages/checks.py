"""Checks before a run of what its stages would find out after hours: models, schedules, tokens and the length of prompts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from persres.config.schema import Profile
from persres.datasets.layout import read_concepts, spread_concepts, spread_prompts
from persres.errors import PersresError
from persres.methods.common.registry import check_available, method_named
from persres.package_paths import located
from persres.prompts import fill
from persres.units.context import Context
from persres.units.outputs import read_macro_classes

log = logging.getLogger(__name__)
LOCAL = "local-dir:"  # open_clip's and timm's prefix of a model in a folder


def check_profile(profile: Profile) -> None:
    """Raises PersresError for a base model that is missing or that a variant does not support, a rare token of several tokens, and a
    number of sampling steps that the model's scheduler can't take."""
    # here: the other stages do without diffusers, which takes seconds to import
    from persres.models.diffusion import load_scheduler, load_tokenizer
    from persres.sampling.samplers import ddim_scheduled

    check_available(profile.base, profile.train)
    load_tokenizer(profile.base)
    scheduler = load_scheduler(profile.base.model)
    for path, steps in _steps(profile):
        try:
            ddim_scheduled(scheduler, steps)
        except PersresError as error:
            raise PersresError(f"{path}: {error}") from error


def _steps(profile: Profile) -> Iterator[tuple[str, int]]:
    """The numbers of sampling steps, each with its setting's path."""
    for name in profile.sample.configs:
        sampling = profile.sample.config(name)
        if sampling.ground_truth is None:
            yield f"sample.configs.{name}.steps", sampling.steps
    if any(settings.class_images() is not None for settings in profile.train.variants.values()):
        yield "train.class_images.steps", profile.train.class_images.steps


def check_folders(profile: Profile) -> None:
    """Raises PersresError for a folder of an encoder or of the attribute classifier that is missing, which only scoring would need."""
    folders = {
        f"encoders.{name}.model": model.removeprefix(LOCAL)
        for name, model in (("clip", profile.encoders.clip.model), ("dino", profile.encoders.dino.model))
        if model.startswith(LOCAL)
    }
    if profile.score.attribute_classifier is not None:
        folders["score.attribute_classifier"] = profile.score.attribute_classifier
    for path, folder in folders.items():
        if not os.path.isdir(located(folder)):
            raise PersresError(f"{path}: no folder {folder}; correct the setting, or put the model there")


def check_prompts(context: Context) -> None:
    """Raises PersresError where LAG could not find the concept in a prompt, since it lies beyond the last token that the model reads.

    Logs other prompts that are cut there.
    """
    from persres.models.diffusion import load_tokenizer
    from persres.models.text_encoding import check_length

    tokenizer = load_tokenizer(context.profile.base)
    for text, phrase, needed in sorted(_prompts(context)):
        try:
            check_length(tokenizer, fill(text, phrase), phrase)
        except PersresError as error:
            if needed:
                raise
            log.warning("%s", error)


def _prompts(context: Context) -> set[tuple[str, str, bool]]:
    """The prompts of all variants: text, phrase, and whether LAG locates the phrase."""
    profile, concepts, prompts = context.profile, read_concepts(context.data / "concepts"), set()
    for name in profile.sample.configs:
        sampling = profile.sample.config(name)
        if sampling.variant is None:
            continue
        settings = profile.train.variant(sampling.variant)
        classes, phrase = read_macro_classes(context, sampling.class_source), method_named(settings.method).phrase
        for concept, _ in spread_concepts(concepts, settings.concepts):
            texts = spread_prompts(concept.prompts, sampling.prompts)
            words = phrase(settings, profile.base, classes[concept.name])
            prompts |= {(text, words, bool(sampling.lag)) for _, _, text in texts}
    return prompts
