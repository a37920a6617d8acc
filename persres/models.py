"""The frozen models, by hub name or local folder, with errors that say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from persres.errors import PersresError
from persres.params import Base
from persres.prompts import add_concept_token
from persres.units import digest_folder


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


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def unavailable(what: str, name: str, error: Exception) -> PersresError:
    """One error for a model that is neither here nor to be had."""
    reason = str(error).strip().split("\n")[0][:200]
    return PersresError(
        f"cannot load {what} {name!r} ({reason}); give a folder that holds it, or connect to the hub that has it"
    )


@lru_cache(maxsize=1)
def load_diffusion(base: Base, device: str) -> Diffusion:
    """All parts in float32 on the device. Raises PersresError where the model can't be had.

    The pipeline's own scheduler settings are read as DDIM, which the paper samples with.
    """
    place = pick_device(device)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            base.model, safety_checker=None, requires_safety_checker=False, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise unavailable("the base model", base.model, error) from error
    add_concept_token(pipe.tokenizer, pipe.text_encoder, base.token, base.rare_token)
    parts = [part.to(place).eval().requires_grad_(False) for part in (pipe.text_encoder, pipe.vae, pipe.unet)]
    return Diffusion(pipe.tokenizer, *parts, DDIMScheduler.from_config(pipe.scheduler.config))


def model_identity(name: str) -> str:
    """What a spec records of a model: its name, and for a local folder the digest of its files."""
    folder = Path(name.removeprefix("local-dir:"))
    return f"{name}@{_folder_digest(folder)[:16]}" if folder.is_dir() else name


@lru_cache
def _folder_digest(folder: Path) -> str:
    return digest_folder(folder)


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
