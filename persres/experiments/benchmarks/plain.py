"""The baselines: diffusers and peft as their example scripts use them, on the same modules with the same ranks.

The loop is that of diffusers' ``examples/dreambooth/train_dreambooth_lora.py`` without prior preservation, which the paper's method does
not use either: photos through the autoencoder, the prompt through the text encoder, a step, gradients clipped, AdamW. ``cached`` is the
fairer baseline: the same loop with the latents' posteriors and the text computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import nn

from persres.experiments.benchmarks.models import CLASS, Measured
from persres.models.text_encoding import prompt_ids
from persres.residuals.targets import find_targets


def adapted(measured: Measured) -> nn.Module:
    """Return a copy of the U-Net with peft adapters on our target modules, with our ranks."""
    unet, settings = deepcopy(measured.pipe.unet).requires_grad_(False), measured.settings
    ranks = {t.path: t.rank for t in find_targets(unet, settings.rank_ratio, settings.rank, settings.target)}
    unet.add_adapter(
        LoraConfig(
            r=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, init_lora_weights="gaussian"
        )
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as the script does under mixed precision
    return unet


def plain_training(measured: Measured, photos: torch.Tensor, steps: int, cached: bool) -> Callable[[], None]:
    """Return a run of ``steps`` steps on photos [n, 3, h, w] in [-1, 1]; ``cached``: with latents and text computed before."""
    pipe, unet, batch = measured.pipe, adapted(measured), measured.settings.batch_size
    values = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=measured.settings.lr, weight_decay=1e-2)
    scale, dtype = pipe.vae.config.scaling_factor, pipe.unet.dtype
    photos = photos.to(measured.device, dtype)
    prompt = [f"a photo of a {measured.base.token} {CLASS}"] * batch
    ids = prompt_ids(pipe.tokenizer, prompt).to(measured.device)
    with torch.no_grad():
        cache = pipe.vae.encode(photos).latent_dist.parameters, pipe.text_encoder(ids)[0]

    @torch.no_grad()
    def read(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not cached:
            return pipe.vae.encode(photos[rows]).latent_dist.sample() * scale, pipe.text_encoder(ids)[0]
        mean, logvar = cache[0][rows].chunk(2, 1)
        return (mean + (logvar / 2).exp() * torch.randn_like(mean)) * scale, cache[1]

    def run() -> None:
        for step in range(steps):
            latents, text = read(torch.arange(step * batch, (step + 1) * batch) % len(photos))
            noise = torch.randn_like(latents)
            t = torch.randint(pipe.scheduler.config.num_train_timesteps, (batch,), device=measured.device)
            with torch.autocast(measured.device.type, dtype, enabled=dtype != torch.float32):
                out = unet(pipe.scheduler.add_noise(latents, noise, t), t, encoder_hidden_states=text).sample
            F.mse_loss(out.float(), noise.float()).backward()
            nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def plain_sampling(measured: Measured, batch: int, steps: int, cfg_scale: float) -> Callable[[], torch.Tensor]:
    """Return a run that samples a batch of images [n, 3, h, w] by diffusers' pipeline and the base model."""
    prompts, pixels = [f"a photo of a {CLASS}"] * batch, measured.base.resolution

    def run() -> torch.Tensor:
        return measured.pipe(
            prompts, num_inference_steps=steps, guidance_scale=cfg_scale, height=pixels, width=pixels, output_type="pt"
        ).images

    return run
