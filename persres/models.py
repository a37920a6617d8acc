"""The frozen models, by hub name or local folder, with errors that say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from persres.loading import pick_device, unavailable
from persres.params import Base
from persres.prompts import add_concept_token


@dataclass
class Diffusion:
    """The parts of a Stable Diffusion pipeline, frozen, with V* among its tokens."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(channels, pixels per latent pixel)."""
        return self.unet.config.in_channels, 2 ** (len(self.vae.config.block_out_channels) - 1)

    def parameter_count(self) -> int:
        """Numbers in the denoiser, the autoencoder and the text encoder together."""
        return sum(p.numel() for part in (self.unet, self.vae, self.text_encoder) for p in part.parameters())


@lru_cache(maxsize=1)
def load_diffusion(base: Base, device: str) -> Diffusion:
    """All parts in float32 on the device. Raises PersresError where the model can't be had.

    The pipeline's own scheduler settings are read as DDIM, which the paper samples with.
    """
    place = pick_device(device)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            base.model, safety_checker=None, requires_safety_checker=False, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise unavailable("the base model", base.model, error) from error
    add_concept_token(pipe.tokenizer, pipe.text_encoder, base.token, base.rare_token)
    parts = [part.to(place).eval().requires_grad_(False) for part in (pipe.text_encoder, pipe.vae, pipe.unet)]
    return Diffusion(pipe.tokenizer, *parts, DDIMScheduler.from_config(pipe.scheduler.config))


@torch.no_grad()
def posterior(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of the latents of images [n, 3, h, w], in the denoiser's scale."""
    found = [vae.encode(image[None].to(vae.device)).latent_dist for image in images]
    scale = vae.config.scaling_factor
    return torch.cat([f.mean for f in found]) * scale, torch.cat([f.std for f in found]) * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Latents in the denoiser's scale -> images [n, 3, h, w] in about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample
