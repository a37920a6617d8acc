"""Samplers as pure functions: ``sampler(denoise, x, scheduler, steps) -> x``.

``denoise(x, t)`` returns the model's output (ε or v, by the scheduler's config) for latents x [n, c, h, w] at timestep t. No progress
bar, no file, no global state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from persres.errors import PersresError
from persres.models.conditioning import Conditioning, joined

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LARGEST_GAP = (
    10  # a schedule may leave out this part (a tenth) of the timesteps at the noisy end, as 60 "leading" steps do
)


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


def scheduled(scheduler: Any, steps: int) -> Any:
    """A copy of a diffusers scheduler with the timesteps of ``steps`` steps.

    Raises PersresError where the number is not possible, or the schedule does not begin near the last timestep, at which images are
    noise: a "leading" schedule of 600 steps visits the timesteps 600 to 1 of 1000.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise PersresError(f"the number of steps is {steps!r}; give a number from 1 on")
    scheduler, total = type(scheduler).from_config(scheduler.config), int(scheduler.config.num_train_timesteps)
    try:
        scheduler.set_timesteps(steps)
        first, last = float(scheduler.timesteps[0]), float(scheduler.timesteps[-1])
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise _no_schedule(scheduler, steps, f"{total} were trained") from error
    step = total // steps
    slack = step + (total // LARGEST_GAP if step > 1 else 0)
    if first >= total or last < 0:
        beyond = first if first >= total else last
        raise _no_schedule(scheduler, steps, f"they would reach timestep {beyond:.0f}, outside of 0 to {total - 1}")
    if first < total - slack:
        raise _no_schedule(scheduler, steps, f"they would begin at timestep {first:.0f} of {total}")
    return scheduler


def _no_schedule(scheduler: Any, steps: int, reason: str) -> PersresError:
    total = scheduler.config.num_train_timesteps
    better = max(1, total // 2 if steps > total // 2 else total // (total // max(1, steps) + 1))
    return PersresError(
        f"{steps} steps are not possible with {type(scheduler).__name__}: {reason}; choose another number, e.g. {better if better != steps else 50}"
    )


def ddim_scheduled(scheduler: DDIMScheduler, steps: int) -> DDIMScheduler:
    """A copy of a DDIM scheduler with its timesteps, as :func:`scheduled`; they are as many as the steps and strictly decrease."""
    scheduler = scheduled(scheduler, steps)
    times = scheduler.timesteps
    if len(times) != steps or not bool((times[1:] < times[:-1]).all()):
        raise _no_schedule(scheduler, steps, "timesteps would repeat")
    return scheduler


@torch.no_grad()
def sample_ddim(denoise: Denoise, x: torch.Tensor, scheduler: DDIMScheduler, steps: int = 50) -> torch.Tensor:
    """The latents after DDIM with η = 0 (Song et al. 2020, equation 12; the paper's 4.3) from unit noise x [n, c, h, w]."""
    scheduler = ddim_scheduled(scheduler, steps)
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
