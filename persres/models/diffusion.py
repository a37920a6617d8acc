"""The frozen models, by hub name or local folder.

Stable Diffusion 1.x and 2.x have one text tower. SDXL has two, and its denoiser also reads the pooled prompt and the image's sizes.
:meth:`Diffusion.encode` returns the conditioning of either, so no other code depends on the family.

diffusers takes seconds to import, so it is imported where a model is loaded; a stage that only reads settings does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from persres.config.schema import Base
from persres.errors import PersresError
from persres.models.base_model import SDXL, config_source, load_pipeline, supported_pipeline
from persres.models.conditioning import Conditioning
from persres.models.loading import pick_device, unavailable
from persres.models.text_encoding import Tower, add_concept_token, prompt_states, rare_token_id, two_tower_states

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}


@dataclass
class Diffusion:
    """The parts of a Stable Diffusion pipeline, frozen, with V* among its tokens.

    ``second`` is SDXL's other text tower, ``empty_is_zero`` its rule for the empty prompt, ``resolution`` the image size in its
    conditioning. With ``cpu_offload`` the text towers and the autoencoder stay on the CPU and move to the denoiser's device only while
    they are used.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    second: Tower | None = None
    empty_is_zero: bool = False
    resolution: int = 0  # pixels, short side
    cpu_offload: bool = False

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(channels, pixels per latent pixel)."""
        return self.unet.config.in_channels, 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def towers(self) -> list[Tower]:
        """Every text tower with its tokenizer."""
        return [(self.tokenizer, self.text_encoder), *([] if self.second is None else [self.second])]

    def parameter_count(self) -> int:
        """The number of parameters of the denoiser and the text towers, as the paper counts (983M for Stable Diffusion v1.4)."""
        parts = [self.unet, *(encoder for _, encoder in self.towers)]
        return sum(p.numel() for part in parts for p in part.parameters())

    def states(self, prompts: list[str]) -> Conditioning:
        """The conditioning of n prompts, with gradients."""
        if self.second is None:
            return Conditioning(prompt_states(self.tokenizer, self.text_encoder, prompts))
        states, pooled = two_tower_states(self.towers, prompts)
        # original size, crop offset, target size: an uncropped image at the working resolution, in training as in sampling
        sizes = torch.tensor(
            [[self.resolution, self.resolution, 0, 0, self.resolution, self.resolution]] * len(prompts)
        )
        return Conditioning(states, {"text_embeds": pooled, "time_ids": sizes.to(states)})

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """The conditioning of n prompts."""
        with self._on_device(*(encoder for _, encoder in self.towers)):
            return self.states(prompts)

    def unconditional(self) -> Conditioning:
        """The unconditional branch of guidance, for one sample: the empty prompt, or zeros where the pipeline's config says so (SDXL)."""
        empty = self.encode([""])
        if not self.empty_is_zero:
            return empty
        return Conditioning(
            torch.zeros_like(empty.states), empty.added | {"text_embeds": torch.zeros_like(empty.added["text_embeds"])}
        )

    def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std of the latents of images; see :func:`posterior`."""
        with self._on_device(self.vae):
            return posterior(self.vae, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The images of latents; see :func:`decode`."""
        with self._on_device(self.vae):
            return decode(self.vae, latents)

    @contextmanager
    def _on_device(self, *parts: nn.Module) -> Iterator[None]:
        if not self.cpu_offload:
            yield
            return
        try:
            for part in parts:
                part.to(self.unet.device)
            yield
        finally:
            for part in parts:
                part.to("cpu")


@lru_cache(maxsize=1)
def load_diffusion(base: Base, device: str, cpu_offload: bool = False) -> Diffusion:
    """The model in ``base.dtype`` on the device, with its scheduler's settings as DDIM, the paper's sampler.

    Raises PersresError where the model can't be loaded or its pipeline is not supported.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return assembled(_pipeline(base), base, pick_device(device), cpu_offload)


def assembled(pipe: DiffusionPipeline, base: Base, device: torch.device, cpu_offload: bool) -> Diffusion:
    """The parts of a pipeline, frozen, each on its device, with V* among the tokens of every text tower."""
    from diffusers import StableDiffusionXLPipeline

    second = (pipe.tokenizer_2, pipe.text_encoder_2) if isinstance(pipe, StableDiffusionXLPipeline) else None
    diffusion = Diffusion(
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.vae,
        pipe.unet,
        _ddim(pipe.scheduler.config, type(pipe.scheduler).__name__, base.model),
        second,
        second is not None and pipe.config.force_zeros_for_empty_prompt,
        base.resolution,
        cpu_offload,
    )
    for tower in diffusion.towers:
        add_concept_token(*tower, base.token, base.rare_token)
    if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
        pipe.vae.float()  # its activations overflow in half precision; diffusers upcasts by the same config key
    for part in (pipe.vae, *(encoder for _, encoder in diffusion.towers)):
        part.to("cpu" if cpu_offload else device).eval().requires_grad_(False)
    pipe.unet.to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        for part in (pipe.unet, pipe.vae):
            # channels-last convolutions are a tenth faster on a CPU, and a tenth slower on a GPU (docs/speed.md)
            part.to(memory_format=torch.channels_last)
    return diffusion


def _pipeline(base: Base) -> DiffusionPipeline:
    no_checker = {} if supported_pipeline(base.model) == SDXL else _NO_CHECKER
    return load_pipeline(base.model, dtype=getattr(torch, base.dtype), **no_checker)


def load_scheduler(model: str) -> DDIMScheduler:
    """A model's scheduler as DDIM, without the rest of the model. Raises PersresError where it is missing or DDIM can't sample it."""
    from diffusers import DDIMScheduler

    try:
        config = DDIMScheduler.load_config(config_source(model), subfolder="scheduler")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unavailable("the base model", model, error) from error
    return _ddim(config, config.get("_class_name", "an unknown scheduler"), model)


def load_tokenizer(base: Base) -> CLIPTokenizer:
    """A model's first tokenizer with V*, without the rest of the model. Raises PersresError where it is missing, or the rare token is
    more than one token."""
    import transformers
    from diffusers import DiffusionPipeline

    name = config_source(base.model)
    place = {"pretrained_model_name_or_path": str(Path(name, "tokenizer"))} if Path(name).is_dir() else {}
    try:
        kind = DiffusionPipeline.load_config(name)["tokenizer"][1]
        hub = {"pretrained_model_name_or_path": name, "subfolder": "tokenizer"}
        tokenizer = getattr(transformers, kind).from_pretrained(**(place or hub))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise unavailable("the base model", base.model, error) from error
    rare_token_id(tokenizer, base.rare_token)
    tokenizer.add_tokens([base.token])
    return tokenizer


def _ddim(config: Mapping[str, Any], scheduler: str, model: str) -> DDIMScheduler:
    from diffusers import DDIMScheduler

    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction"):
        raise PersresError(
            f"base.model {model!r} was trained for {scheduler} (prediction {kind!r}), which DDIM can't"
            " sample; use a model that predicts noise or velocity on a beta schedule"
        )
    return DDIMScheduler.from_config(config, clip_sample=False)  # latents must not be clipped


@torch.no_grad()
def posterior(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of the latents of images [n, 3, h, w], at the denoiser's scale, float32."""
    latents = [vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist for image in images]
    scale = vae.config.scaling_factor
    return torch.cat([x.mean.float() for x in latents]) * scale, torch.cat([x.std.float() for x in latents]) * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The images [n, 3, h, w] of latents at the denoiser's scale, in about [-1, 1], float32."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
