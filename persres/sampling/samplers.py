"""Samplers as pure functions: ``sampler(denoise, x, scheduler, steps) -> x``.

``denoise(x, t)`` gives the model's output (ε or v, as the scheduler's config says) for latents
x [n, c, h, w] at timestep t. Tensors in, tensors out: no progress bar, no file, no global state.
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
    """Classifier-free guidance, u + s·(c − u), both branches in one pass as [uncond; cond].

    ``cond`` of n prompts; ``uncond`` of n, or of one; ``cfg_scale`` of all, or of each, [n, 1, 1, 1]. The denoiser computes in their precision, the rest in that of x.
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
    """DDIM with η = 0 (Song et al. 2020, equation 12; the paper's 4.3). x: unit noise [n, c, h, w]."""
    scheduler = DDIMScheduler.from_config(scheduler.config)  # set_timesteps would change the caller's
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    # The schedule stays on the CPU, where reading a timestep makes nobody wait for the GPU.
    for t, there in zip(scheduler.timesteps, scheduler.timesteps.to(x.device), strict=True):
        x = scheduler.step(denoise(scheduler.scale_model_input(x, t), there), t, x, eta=0.0).prev_sample
    return x


def starting_noise(draws: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise [n, *shape], each sample from its own generator: a picture's noise does not depend
    on the method, the batch or the shard it is drawn in (paper 4.3: the same seed for all methods)."""
    return torch.stack([torch.randn(shape, generator=draw) for draw in draws])
