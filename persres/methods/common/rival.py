"""Base of the rivals: they train parameters of the model by a plan, save them by name, and patch the model with them to sample.

They train in float32, as their authors do, and support models with one text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pydantic import Field

from persres.config.schema import Base, SamplingConfig, VariantSettings
from persres.methods.common.base import LearnedFile, LoadedMethod, OnStep, TrainingData, TrainingResult
from persres.methods.common.state_file import load_state, save_state
from persres.models.base_model import SDXL
from persres.models.diffusion import Diffusion
from persres.models.weight_patching import patched_weights
from persres.training.batches import EncodedData, EncodedImages, TrainingPlan

Planner = Callable[[Diffusion, VariantSettings, EncodedData], TrainingPlan]


class RivalSettings(VariantSettings):
    """Settings of every rival."""

    checkpoint_every: int = Field(200, ge=1)

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Why the variant cannot be sampled like this, or None: only residuals can be masked or scaled."""
        if sampling.lag:
            return f"lag: masks apply to residuals of proj_out, but {sampling.variant} trains {self.method}"
        if sampling.strength != 1.0:
            return f"strength: only residuals can be scaled, and {sampling.variant} is {self.method}"
        return None


class Rival:
    """Implements :class:`persres.methods.common.base.Method`. ``plan`` makes the training plan; ``words`` returns the phrase for
    the concept, from (V*, rare token, macro class)."""

    needs_photo = False

    def __init__(
        self,
        name: str,
        settings: type[RivalSettings],
        words: Callable[[str, str, str], str],
        plan: Planner,
        sd14_parameters: int | None = None,
    ) -> None:
        self.name, self.settings, self.words, self.plan = name, settings, words, plan
        self.sd14_parameters = sd14_parameters

    def sd14_file_bytes(self, settings: RivalSettings) -> int | None:
        """The size of the learned file on Stable Diffusion v1.4, in half precision; None if not known."""
        return None if self.sd14_parameters is None else 2 * self.sd14_parameters

    def phrase(self, settings: RivalSettings, base: Base, macro_class: str) -> str:
        """The phrase for the concept, as the authors write it."""
        return self.words(base.token, base.rare_token, macro_class)

    def base_for(self, base: Base) -> Base:
        """The base model in float32, as the authors train it."""
        return base.model_copy(update={"dtype": "float32"})

    def refuses(self, settings: RivalSettings, family: str) -> str | None:
        """The method's name for SDXL, which has two text encoders; else None."""
        return self.name if family == SDXL else None

    def can_cpu_offload(self, settings: RivalSettings) -> bool:
        """False: every step uses the text encoder."""
        return False

    def train(
        self, diffusion: Diffusion, data: TrainingData, settings: RivalSettings, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """Train the parameters of the plan."""
        from persres.training.weight_training import TrainingRun, train_weights

        token_id = diffusion.tokenizer.convert_tokens_to_ids(data.base.token)
        plan = self.plan(diffusion, settings, _encoded(diffusion, data, settings))
        run = TrainingRun(data.concept, token_id, checkpoint, on_step)
        state, rows = train_weights(diffusion, plan, settings, run)
        count = sum(value.numel() for value in state.values())
        return TrainingResult(count, rows, lambda path, info: save_state(path, state, info))

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """The trained weights, which patch the model while it samples."""
        state, _ = load_state(source.path)
        return self.loaded(diffusion, source, state, state)

    def loaded(
        self,
        diffusion: Diffusion,
        source: LearnedFile,
        state: dict[str, torch.Tensor],
        model_values: dict[str, torch.Tensor],
    ) -> LoadedMethod:
        """``state``: all trained tensors; ``model_values``: those that replace parameters of the model."""
        token_id = diffusion.tokenizer.convert_tokens_to_ids(source.base.token)
        patch = partial(patched_weights, diffusion, model_values, token_id)
        return LoadedMethod(sum(value.numel() for value in state.values()), None, patch, tensors=state)


def _encoded(diffusion: Diffusion, data: TrainingData, settings: RivalSettings) -> EncodedData:
    request, class_images = settings.class_images(), None
    photos = EncodedImages.of(diffusion, data.photos)
    if request is not None and data.class_images:
        class_images = EncodedImages.of(diffusion, data.class_images[: request.count])
    return EncodedData(photos, class_images, data.base, data.macro_class)
