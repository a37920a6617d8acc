"""The frozen base model as a zero-shot classifier: the right noun gives the lowest denoising error.

Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023, equation 4. All prompts share the noise, so
an image's difficulty cancels in their differences.
"""

from __future__ import annotations

import torch
from PIL import Image

from persres.config.schema import ZeroShotClassSettings
from persres.images import square, to_tensor
from persres.models.conditioning import joined
from persres.models.diffusion import Diffusion
from persres.seeding import generator

LEVELS = (0.3, 0.8)  # share of the noise schedule: below it all prompts do well, above it nothing of the image is left


@torch.no_grad()
def denoising_errors(
    diffusion: Diffusion,
    photos: list[Image.Image],
    prompts: list[str],
    resolution: int,
    settings: ZeroShotClassSettings,
) -> torch.Tensor:
    """Mean squared error of the U-Net's prediction, [photos, noise levels, prompts], float32 on the CPU."""
    num_levels = settings.noise_levels
    mean, _ = diffusion.posterior(to_tensor([square(photo, resolution) for photo in photos]))
    latents = mean.cpu().repeat_interleave(num_levels, 0)
    noise = torch.stack([torch.randn(z.shape, generator=generator("noun", i)) for i, z in enumerate(latents)])
    low, high = LEVELS
    steps = low + (high - low) * (torch.arange(num_levels) + 0.5) / num_levels
    t = (steps * diffusion.scheduler.config.num_train_timesteps).long().repeat(len(photos))
    columns = [_errors(diffusion, prompt, (latents, noise, t), settings.batch_size) for prompt in prompts]
    return torch.stack(columns, 1).view(len(photos), num_levels, len(prompts))


def _errors(diffusion: Diffusion, prompt: str, samples: tuple[torch.Tensor, ...], batch: int) -> torch.Tensor:
    from persres.training.residual_training import diffusion_target  # imports diffusers, which nouns alone do not need

    text, device, errors = diffusion.encode([prompt]), diffusion.unet.device, []
    for rows in torch.arange(len(samples[0])).split(batch):
        latents, noise, t = (part[rows].to(device) for part in samples)
        noisy = diffusion.scheduler.add_noise(latents, noise, t).to(text.states.dtype)
        output = diffusion.unet(noisy, t, **joined([text] * len(rows)).arguments()).sample.float()
        target = diffusion_target(diffusion.scheduler, latents, noise, t)
        errors.append((output - target).pow(2).flatten(1).mean(1).cpu())
    return torch.cat(errors)
