"""What the rivals share: weights of the model's own that learn by a plan, saved by name and put back in place to draw.

They train in float32, as their authors do, and are written for one text tower.
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
from persres.models.diffusion import SDXL, Diffusion
from persres.models.weight_patching import patched_weights
from persres.training.batches import EncodedImages, Plan

# The model, settings, photos, class images or none, the base, the macro class -> what trains, at which rate, on what.
Planner = Callable[[Diffusion, VariantSettings, EncodedImages, EncodedImages | None, Base, str], Plan]


class RivalSettings(VariantSettings):
    """What differs from ours in all of them."""

    checkpoint_every: int = Field(200, ge=1)

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Only residuals can be masked or scaled."""
        if sampling.lag:
            return f"lag: masks act on residuals of proj_out, but {sampling.variant} trains {self.method}"
        if sampling.strength != 1.0:
            return f"strength: only residuals can be scaled, and {sampling.variant} is {self.method}"
        return None


class Rival:
    """See :class:`persres.methods.common.base.Method`. ``plan`` says what trains; ``words`` what stands for the concept, from
    (V*, rare token, macro class)."""

    needs_photo = False

    def __init__(
        self, name: str, settings: type[RivalSettings], words: Callable[[str, str, str], str], plan: Planner
    ) -> None:
        self.name, self.settings, self.words, self.plan = name, settings, words, plan

    def phrase(self, settings: RivalSettings, base: Base, macro_class: str) -> str:
        """As its authors name the concept."""
        return self.words(base.token, base.rare_token, macro_class)

    def base_for(self, base: Base) -> Base:
        """In float32, what its authors train in."""
        return base.model_copy(update={"dtype": "float32"})

    def refuses(self, settings: RivalSettings, family: str) -> str | None:
        """Written for one text tower."""
        return self.name if family == SDXL else None

    def can_cpu_offload(self, settings: RivalSettings) -> bool:
        """The text tower works in every step."""
        return False

    def train(
        self, diffusion: Diffusion, material: TrainingData, settings: RivalSettings, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """Learn what the plan names."""
        from persres.training.weight_training import train_weights

        token_id = diffusion.tokenizer.convert_tokens_to_ids(material.base.token)
        photos = EncodedImages.of(diffusion, material.photos)
        request, prior = settings.class_images(), None
        if request is not None and material.class_images:
            prior = EncodedImages.of(diffusion, material.class_images[: request.count])
        plan = self.plan(diffusion, settings, photos, prior, material.base, material.macro_class)
        state, rows = train_weights(diffusion, plan, settings, material.concept, token_id, checkpoint, on_step)
        return TrainingResult(
            sum(v.numel() for v in state.values()), rows, lambda path, info: save_state(path, state, info)
        )

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """The learned weights, to be put in the model's place while it draws."""
        state, _ = load_state(source.path)
        return self.loaded(diffusion, source, state, state)

    def loaded(
        self, diffusion: Diffusion, source: LearnedFile, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
    ) -> LoadedMethod:
        """``own`` are the weights that the model has; ``state`` all that was learned."""
        token_id = diffusion.tokenizer.convert_tokens_to_ids(source.base.token)
        inside = partial(patched_weights, diffusion, own, token_id)
        return LoadedMethod(sum(value.numel() for value in state.values()), None, inside, tensors=state)
