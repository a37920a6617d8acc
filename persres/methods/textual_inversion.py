"""Textual Inversion (Gal et al. 2022): trains one embedding vector; the model stays frozen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persres.config.schema import LearningRate
from persres.methods.common.rival import Rival
from persres.methods.common.word_embeddings import WordEmbeddingSettings, captions_of, start_vector, token_alone
from persres.models.diffusion import Diffusion
from persres.models.weight_patching import TOKEN
from persres.training.batches import EncodedData, TrainingPlan, plain_batch


class TextualInversion(WordEmbeddingSettings):
    """rinongal/textual_inversion: lr 5e-3 × batch (scale_lr is on), batch 2, 6,100 steps, one vector, neutral templates."""

    method: Literal["textual_inversion"] = "textual_inversion"
    steps: int = Field(6100, ge=1)
    batch_size: int = Field(2, ge=1)
    lr: LearningRate = 1e-2


def plan(diffusion: Diffusion, settings: TextualInversion, data: EncodedData) -> TrainingPlan:
    """Random photos with random neutral captions."""
    captions = captions_of(settings, data.base.token)
    vector = start_vector(diffusion, settings.init_word or data.macro_class.split()[-1])
    return TrainingPlan(
        [TOKEN],
        {TOKEN: settings.lr},
        lambda step, draw: plain_batch(data.photos, captions, settings.batch_size, draw),
        vector,
    )


METHOD = Rival("textual_inversion", TextualInversion, token_alone, plan, sd14_parameters=768)
