"""Personalized residuals (the paper's method): low-rank residuals on output projections, V* frozen, no class images.

The paper's ablations are settings of it: other layers, a fixed rank, no class in the prompt, class images, a learned V*.

What works with diffusers is imported where it works: reading a profile asks for the settings alone, and must not take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from persres.config.schema import Base
from persres.images import to_tensor
from persres.methods.common.base import LearnedFile, LoadedMethod, OnStep, TrainingData, TrainingResult
from persres.models.conditioning import Conditioning
from persres.models.diffusion import SDXL, Diffusion
from persres.models.weight_patching import TOKEN, patched_weights, trainable_copies
from persres.prompts import fill
from persres.training.settings import ResidualSettings

if TYPE_CHECKING:
    from persres.residuals.bank import ResidualBank
    from persres.training.residual_training import EncodedConcept


class Ours(ResidualSettings):
    """The paper's values (3.2 and 4.1): 150 iterations, batch 4, learning rate 1e-3, rank 0.05·m."""

    method: Literal["ours"] = "ours"


def encode_concept(diffusion: Diffusion, material: TrainingData, settings: Ours) -> EncodedConcept:
    """Cached latents of the photos and the cached embedding of the training prompt, and of class images where asked."""
    from persres.training.residual_training import EncodedConcept

    phrase = METHOD.phrase(settings, material.base, material.macro_class)
    prompts = [fill(settings.prompt, phrase), fill(settings.prompt, material.macro_class)]
    both = diffusion.encode(prompts)
    text, plain = both.rows(0, 1), both.rows(1, 2)
    if settings.train_token:

        def text() -> Conditioning:
            return diffusion.states(prompts[:1])

    prior = None
    if material.class_images:
        images = material.class_images[: settings.num_class_images]
        prior = EncodedConcept(f"{material.concept}/prior", *diffusion.posterior(to_tensor(images)), plain)
    return EncodedConcept(material.concept, *diffusion.posterior(to_tensor(material.photos)), text, prior)


@contextmanager
def _token(diffusion: Diffusion, base: Base, settings: Ours) -> Iterator[dict[str, torch.nn.Parameter]]:
    """V*'s embedding as a parameter in its place, where it learns too; else nothing."""
    if not settings.train_token:
        yield {}
        return
    token_id = diffusion.tokenizer.convert_tokens_to_ids(base.token)
    values = trainable_copies(diffusion, [TOKEN], token_id)
    with patched_weights(diffusion, values, token_id):
        yield values


def _save(bank: ResidualBank, concept: int, token: torch.Tensor | None, path: Path, info: dict[str, Any]) -> None:
    from persres.residuals.file import save_residual

    save_residual(path, bank.to_state(concept), list(bank.targets), info, token)


def _own_rows(rows: list[dict[str, Any]], concept: int) -> list[dict[str, Any]]:
    """One concept's log, as it would be alone: it ends where the concept settled, and others that settle leave no norms in it."""
    own = []
    for row in rows:
        if row["loss"][concept] is None:
            break
        mine = {key: value if key == "step" else value[concept] for key, value in row.items()}
        if "stopped" in row and mine["stopped"] is None:
            del mine["stopped"]
            if (row["step"] + 1) % 10:
                del mine["norms"]
        own.append(mine)
    return own


class PersonalizedResiduals:
    """See :class:`persres.methods.common.base.Method`."""

    name = "ours"
    settings = Ours
    needs_photo = False
    batched_sampling = True

    def phrase(self, settings: Ours, base: Base, macro_class: str) -> str:
        """V* before the class; V* alone in the ablation without it."""
        return f"{base.token} {macro_class}" if settings.name_class else base.token

    def base_for(self, base: Base) -> Base:
        """In any precision: the residuals themselves learn in float32."""
        return base

    def refuses(self, settings: Ours, family: str) -> str | None:
        """V*'s own embedding is learned in one text tower only."""
        return "train_token" if settings.train_token and family == SDXL else None

    def can_cpu_offload(self, settings: Ours) -> bool:
        """The text is read once, unless V*'s embedding learns: then the tower works in every step."""
        return not settings.train_token

    def train(
        self, diffusion: Diffusion, material: TrainingData, settings: Ours, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """150 steps on the photos, or fewer under ``stop: settled``."""
        return self.train_batched(diffusion, [material], settings, checkpoint, on_step)[0]

    def can_train_batched(self, settings: Ours, base: Base) -> bool:
        """Not where V*'s embedding learns too, which concepts would share; nor in float16, where one concept's overflow would make
        all of them leave out a step."""
        return not settings.train_token and base.dtype != "float16"

    def train_batched(
        self, diffusion: Diffusion, materials: list[TrainingData], settings: Ours, checkpoint: Path, on_step: OnStep
    ) -> list[TrainingResult]:
        """One bank for all: every draw belongs to a concept's name, no parameter is shared."""
        from persres.residuals.bank import find_targets
        from persres.training.residual_training import new_bank, train

        lessons = [encode_concept(diffusion, material, settings) for material in materials]
        targets = find_targets(diffusion.unet, settings.rank_ratio, settings.rank, settings.target)
        bank = new_bank(targets, lessons, settings).to(diffusion.unet.device)
        with _token(diffusion, materials[0].base, settings) as extra:
            log = train(diffusion.unet, diffusion.scheduler, lessons, bank, settings, checkpoint, on_step, extra)
        parameters = bank.count() + sum(value.numel() for value in extra.values())
        return [
            TrainingResult(parameters, _own_rows(log.rows, concept), partial(_save, bank, concept, extra.get(TOKEN)))
            for concept in range(len(lessons))
        ]

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """A bank of one concept, and V*'s embedding where it learned too."""
        from persres.residuals.file import load_bank, load_token

        bank, token = load_bank(diffusion.unet, source.path).scaled(strength), load_token(source.path)
        if token is None:
            return LoadedMethod(bank.count(), bank)
        token_id = diffusion.tokenizer.convert_tokens_to_ids(source.base.token)
        inside = partial(patched_weights, diffusion, {TOKEN: token}, token_id)
        return LoadedMethod(bank.count() + token.numel(), bank, inside, tensors={TOKEN: token})


METHOD = PersonalizedResiduals()
