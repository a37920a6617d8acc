"""The frozen base model as a judge of what a photo shows: under the right noun it tells noise from picture best.

Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023, equation 4: the same noise for every prompt, so that
what the picture costs under any prompt falls out of the difference. Of all judges it is the one whose opinion counts here: a
residual starts from what this model makes of the noun.
"""

from __future__ import annotations

import torch
from PIL import Image

from persres.images import square, to_tensor
from persres.models.conditioning import joined
from persres.models.diffusion import Diffusion
from persres.seeding import generator

LEVELS = (0.3, 0.8)  # of the noise schedule: before, every prompt does; after, nothing of the picture is left


@torch.no_grad()
def denoising_errors(
    diffusion: Diffusion, photos: list[Image.Image], prompts: list[str], resolution: int, draws: int, batch: int = 8
) -> torch.Tensor:
    """Mean squared error of the model's answer, [photos, draws, prompts], float32 on the CPU. ``draws``: noise levels of a photo."""
    mean, _ = diffusion.posterior(to_tensor([square(photo, resolution) for photo in photos]))
    latents = mean.cpu().repeat_interleave(draws, 0)
    noise = torch.stack([torch.randn(z.shape, generator=generator("noun", i)) for i, z in enumerate(latents)])
    low, high = LEVELS
    steps = low + (high - low) * (torch.arange(draws) + 0.5) / draws
    t = (steps * diffusion.scheduler.config.num_train_timesteps).long().repeat(len(photos))
    columns = [_errors(diffusion, latents, noise, t, prompt, batch) for prompt in prompts]
    return torch.stack(columns, 1).view(len(photos), draws, len(prompts))


def _errors(diffusion: Diffusion, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, prompt: str, batch: int):
    from persres.training.residual_training import diffusion_target  # with diffusers, which nouns alone do not need

    text, place, found = diffusion.encode([prompt]), diffusion.unet.device, []
    for rows in torch.arange(len(z)).split(batch):
        picture, dirt, step = (part[rows].to(place) for part in (z, noise, t))
        noisy = diffusion.scheduler.add_noise(picture, dirt, step).to(text.states.dtype)
        said = joined([text] * len(rows))
        out = diffusion.unet(noisy, step, **said.arguments()).sample.float()
        wanted = diffusion_target(diffusion.scheduler, picture, dirt, step)
        found.append((out - wanted).pow(2).flatten(1).mean(1).cpu())
    return torch.cat(found)
