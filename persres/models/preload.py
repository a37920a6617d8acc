"""The imports that loading and running a model needs. A process that forks workers imports this first, so that no worker spends seconds on
imports."""

from diffusers import (  # noqa: F401
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
