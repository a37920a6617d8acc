"""Samplers as pure functions: ``sampler(denoise, x, scheduler, steps) -> x``.

``denoise(x, t)`` returns the model's output (ε or v, by the scheduler's config) for latents x [n, c, h, w] at timestep t. No progress
bar, no file, no global state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import nn

from persres.models.conditioning import Conditioning, joined

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def guided(
    unet: nn.Module,
    cond: torch.Tensor | Conditioning,
    uncond: torch.Tensor | Conditioning,
    cfg_scale: float | torch.Tensor,
) -> Denoise:
    """A denoiser with classifier-free guidance, u + s · (c − u), with both branches in one pass as [unconditional; conditional].

    ``cond`` holds n prompts; ``uncond`` n or one; ``cfg_scale`` is one number, or one per sample, [n, 1, 1, 1]. The U-Net computes in the
    precision of the prompts, the rest in that of x.
    """
    cond = Conditioning.of(cond)
    both = joined([Conditioning.of(uncond).expand(len(cond.states)), cond])

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = unet(torch.cat([x, x]).to(both.states.dtype), t, **both.arguments()).sample
        u, c = out.to(x.dtype).chunk(2)
        return u + cfg_scale * (c - u)

    return denoise


@torch.no_grad()
def sample_ddim(denoise: Denoise, x: torch.Tensor, scheduler: DDIMScheduler, steps: int = 50) -> torch.Tensor:
    """The latents after DDIM with η = 0 (Song et al. 2020, equation 12; the paper's 4.3) from unit noise x [n, c, h, w]."""
    scheduler = DDIMScheduler.from_config(scheduler.config)  # set_timesteps changes the caller's
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    # The schedule stays on the CPU: reading a timestep from the GPU would wait for it.
    for t, t_device in zip(scheduler.timesteps, scheduler.timesteps.to(x.device), strict=True):
        x = scheduler.step(denoise(scheduler.scale_model_input(x, t), t_device), t, x, eta=0.0).prev_sample
    return x


def starting_noise(draws: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise [n, *shape], each sample from its own generator.

    So an image's noise does not depend on method, batch or shard (paper 4.3: the same seed for all methods).
    """
    return torch.stack([torch.randn(shape, generator=draw) for draw in draws])
