"""One batch of pictures: noise, prompts, guidance, and the residual everywhere (paper 3.2) or inside LAG's masks (3.3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from persres.config.schema import SamplingConfig
from persres.models.attention import cached_text_kv
from persres.models.conditioning import Conditioning, joined
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions
from persres.residuals.bank import ResidualBank, Routing, merged_weights, residual_hooks
from persres.sampling.lag import MaskRule, guidance_rule, lag_hooks, mean_mask
from persres.sampling.mask_config import AUTO, MaskConfig, masks_prompt
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units.specs import ImageSpec


def mask_config_from(sampling: SamplingConfig) -> MaskConfig:
    """The masking that a drawing asks for: ``lag: auto`` is ours, else what it says, the paper's if nothing."""
    if sampling.lag == "auto":
        return AUTO
    blocks = sampling.mask_blocks
    return MaskConfig(
        sampling.mask, sampling.mask_area, blocks, sampling.mask_smooth, sampling.mask_control, sampling.mask_when
    )


def lag_rule(diffusion: Diffusion, items: list[ImageSpec], sampling: SamplingConfig) -> tuple[Routing, MaskRule]:
    """How a batch [unconditional; conditional] of these pictures is masked."""

    def draws(pixels: int) -> list[torch.Generator]:
        return [generator("mask", sampling.seed, i.plain, i.image, pixels) for i in items]

    positions = [concept_positions(diffusion.tokenizer, i.prompt, i.phrase) for i in items]
    tokens = torch.stack(positions).to(diffusion.unet.device)
    mask_config = mask_config_from(sampling)
    unmasked = torch.tensor([not masks_prompt(mask_config, i.prompt, i.phrase) for i in items], device=tokens.device)
    routing, rule = guidance_rule(tokens, sampling.uncond_rule, mask_config, draws, record=True, unmasked=unmasked)
    rule.steps = sampling.steps
    return routing, rule


def noise_of(diffusion: Diffusion, items: list[ImageSpec], seed: int, resolution: int) -> torch.Tensor:
    """The pictures' starting noise [n, c, h, w]: it belongs to seed, prompt and image."""
    channels, factor = diffusion.latent_shape
    draws = [generator("noise", seed, i.plain, i.image) for i in items]
    return starting_noise(draws, (channels, *[resolution // factor] * 2))


class PromptCache:
    """Embedded prompts, each read once. Good for as long as nothing changes in the text towers."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion, self.known = diffusion, {}
        self.unconditional = diffusion.unconditional()

    def __call__(self, prompts: list[str]) -> Conditioning:
        """What the denoiser reads of n prompts, with or without repetitions."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            found = self.diffusion.encode(new)
            self.known |= {prompt: found.rows(i, i + 1) for i, prompt in enumerate(new)}
        return joined([self.known[prompt] for prompt in prompts])


def sample_images(
    diffusion: Diffusion,
    items: list[ImageSpec],
    sampling: SamplingConfig,
    bank: ResidualBank | None,
    resolution: int,
    predictor: Callable[[list[ImageSpec]], Any] | None = None,
    texts: PromptCache | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures [n, 3, h, w] in about [-1, 1] of one batch, and for LAG the averaged masks [n, size, size].

    ``predictor`` gives what predicts in the U-Net's place, where a method needs one; ``texts`` the prompts that batches before have
    read.
    """
    n, factor = len(items), diffusion.latent_shape[1]
    noise = noise_of(diffusion, items, sampling.seed, resolution)
    texts = PromptCache(diffusion) if texts is None else texts
    unet = diffusion.unet if predictor is None else predictor(items)
    denoise = guided(unet, texts([i.prompt for i in items]), texts.unconditional, sampling.cfg_scale)
    rule = None
    with ExitStack() as stack:
        if bank is not None and sampling.lag:
            routing, rule = lag_rule(diffusion, items, sampling)
            stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
            routing.weight = routing.weight if sampling.uncond_rule == "base" else None
            stack.enter_context(residual_hooks(diffusion.unet, bank, routing))
        elif bank is not None:
            stack.enter_context(merged_weights(diffusion.unet, bank))
        if predictor is None:
            stack.enter_context(cached_text_kv(diffusion.unet))
        latents = sample_ddim(denoise, noise.to(diffusion.unet.device), diffusion.scheduler, sampling.steps)
    masks = None if rule is None else mean_mask(rule, slice(n, 2 * n), resolution // factor)
    return diffusion.decode(latents), masks
