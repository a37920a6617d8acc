"""Textual Inversion (Gal et al. 2022): one embedding vector is learned, the model stays."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persres.config import Base
from persres.methods.common.rival import Rival
from persres.methods.common.words import WordSettings, captions_of, start_vector, word_alone
from persres.models.diffusion import Diffusion
from persres.models.swap import TOKEN
from persres.training.lessons import Pictures, Plan, plain_batch


class TextualInversion(WordSettings):
    """rinongal/textual_inversion: lr 5e-3 × batch (scale_lr is on), batch 2, 6,100 steps, one vector, neutral templates."""

    method: Literal["textual_inversion"] = "textual_inversion"
    steps: int = Field(6100, ge=1)
    batch_size: int = Field(2, ge=1)
    lr: float = Field(1e-2, gt=0)


def plan(
    diffusion: Diffusion,
    settings: TextualInversion,
    photos: Pictures,
    prior: Pictures | None,
    base: Base,
    macro_class: str,
) -> Plan:
    """Random photos under random neutral captions."""
    captions = captions_of(settings, base.token)
    vector = start_vector(diffusion, settings.init_word or macro_class.split()[-1])
    return Plan(
        [TOKEN],
        {TOKEN: settings.lr},
        lambda step, draw: plain_batch(photos, captions, settings.batch_size, draw),
        vector,
    )


METHOD = Rival("textual_inversion", TextualInversion, word_alone, plan)
