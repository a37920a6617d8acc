"""The model families by their ``config.json`` files, to build with random weights.

For parameter counts, timing and tests, which need a model's shape but not its trained weights. Trained weights come from a hub or a folder
(``persres/models/diffusion.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_LATENTS = {"clip_sample": False, "set_alpha_to_one": False}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_FOUR_STEPS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}


@dataclass(frozen=True)
class Family:
    """Arguments of a pipeline's components. ``second`` is SDXL's second text encoder; ``pads`` the tokenizers' padding tokens."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    scheduler: SchedulerMixin
    resolution: int  # pixels
    second: dict[str, Any] | None = None
    pads: tuple[str, ...] = ("<|endoftext|>",)

    def changed(self, **parts: dict[str, Any]) -> Family:
        """Returns the same blocks at other sizes, with each component's named arguments replaced."""
        return replace(self, **{name: getattr(self, name) | new for name, new in parts.items()})


FAMILIES: dict[str, Family] = {
    "sd14": Family(
        unet=_FOUR_STEPS | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae=_VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        text=_CLIP_L,
        scheduler=PNDMScheduler(**_BETAS, set_alpha_to_one=False, skip_prk_steps=True),
        resolution=512,
    ),
    "sd21": Family(
        unet=_FOUR_STEPS
        | {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae=_VAE | {"sample_size": 768, "scaling_factor": 0.18215},
        text={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
        },
        scheduler=DDIMScheduler(**_BETAS, **_LATENTS, prediction_type="v_prediction"),
        resolution=768,
        pads=("!",),
    ),
    "sdxl": Family(
        unet={
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "layers_per_block": 2,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text=_CLIP_L,
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        resolution=1024,
        second={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
        pads=("<|endoftext|>", "!"),
    ),
}


def _text_config(special: dict[str, Any]) -> CLIPTextConfig:
    # The hub's configs have end token 2, which is none of their tokenizers' (persres/models/text_encoding.py fixes it).
    common = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
    return CLIPTextConfig(**common | special)


def build_parts(family: Family) -> dict[str, torch.nn.Module]:
    """Returns the components by their names in the pipeline, with random weights; on the meta device within ``torch.device("meta")``."""
    parts = {
        "unet": UNet2DConditionModel(**family.unet),
        "vae": AutoencoderKL(**family.vae),
        "text_encoder": CLIPTextModel(_text_config(family.text)),
    }
    if family.second is not None:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(_text_config(family.second))
    return {name: part.eval() for name, part in parts.items()}


def build_pipeline(family: Family, tokenizer: Path) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Returns a pipeline with random weights and a folder's tokenizer, whose vocabulary may be smaller than the embedding tables."""
    tokenizers = [CLIPTokenizer.from_pretrained(tokenizer, pad_token=pad) for pad in family.pads]
    parts = build_parts(family) | {"tokenizer": tokenizers[0], "scheduler": family.scheduler}
    if family.second is not None:
        return StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizers[1], add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def sizes(family: Family) -> dict[str, int]:
    """Returns the parameters of each component, counted on the meta device without allocating memory."""
    with torch.device("meta"):
        return {name: sum(p.numel() for p in part.parameters()) for name, part in build_parts(family).items()}
