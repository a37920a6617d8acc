"""What it takes to load and run a model, imported at once: by those that work with one, so that the process that workers are
forked from has it, and no worker waits for seconds of imports of its own."""

from diffusers import (  # noqa: F401
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
