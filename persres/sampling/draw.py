"""One batch of pictures: noise, prompts, guidance, and the residual everywhere (paper 3.2) or inside LAG's masks (3.3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from persres.config import Drawing
from persres.models.attention import text_kept
from persres.models.conditioning import Conditioning, joined
from persres.models.diffusion import Diffusion
from persres.models.prompts import concept_positions
from persres.residuals.bank import ResidualBank, Routing, attached, merged
from persres.runs.specs import Item
from persres.sampling.lag import MaskRule, guidance_rule, localised, mean_mask
from persres.sampling.masking import AUTO, Masking, masks_prompt
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator


def masking_from(drawing: Drawing) -> Masking:
    """The masking that a drawing asks for: ``lag: auto`` is ours, else what it says, the paper's if nothing."""
    if drawing.lag == "auto":
        return AUTO
    blocks = drawing.mask_blocks
    return Masking(
        drawing.mask, drawing.mask_area, blocks, drawing.mask_smooth, drawing.mask_control, drawing.mask_when
    )


def lag_rule(diffusion: Diffusion, items: list[Item], drawing: Drawing) -> tuple[Routing, MaskRule]:
    """How a batch [unconditional; conditional] of these pictures is masked."""

    def draws(pixels: int) -> list[torch.Generator]:
        return [generator("mask", drawing.seed, i.plain, i.image, pixels) for i in items]

    positions = [concept_positions(diffusion.tokenizer, i.prompt, i.phrase) for i in items]
    tokens = torch.stack(positions).to(diffusion.unet.device)
    masking = masking_from(drawing)
    unmasked = torch.tensor([not masks_prompt(masking, i.prompt, i.phrase) for i in items], device=tokens.device)
    routing, rule = guidance_rule(tokens, drawing.uncond_rule, masking, draws, record=True, unmasked=unmasked)
    rule.steps = drawing.steps
    return routing, rule


def noise_of(diffusion: Diffusion, items: list[Item], seed: int, resolution: int) -> torch.Tensor:
    """The pictures' starting noise [n, c, h, w]: it belongs to seed, prompt and image."""
    channels, factor = diffusion.latent_shape
    draws = [generator("noise", seed, i.plain, i.image) for i in items]
    return starting_noise(draws, (channels, *[resolution // factor] * 2))


class Texts:
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


def draw(
    diffusion: Diffusion,
    items: list[Item],
    drawing: Drawing,
    bank: ResidualBank | None,
    resolution: int,
    predictor: Callable[[list[Item]], Any] | None = None,
    texts: Texts | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures [n, 3, h, w] in about [-1, 1] of one batch, and for LAG the averaged masks [n, size, size].

    ``predictor`` gives what predicts in the U-Net's place, where a method needs one; ``texts`` the prompts that batches before have
    read.
    """
    n, factor = len(items), diffusion.latent_shape[1]
    noise = noise_of(diffusion, items, drawing.seed, resolution)
    texts = Texts(diffusion) if texts is None else texts
    unet = diffusion.unet if predictor is None else predictor(items)
    denoise = guided(unet, texts([i.prompt for i in items]), texts.unconditional, drawing.cfg_scale)
    rule = None
    with ExitStack() as stack:
        if bank is not None and drawing.lag:
            routing, rule = lag_rule(diffusion, items, drawing)
            stack.enter_context(localised(diffusion.unet, routing, rule))
            routing.weight = routing.weight if drawing.uncond_rule == "base" else None
            stack.enter_context(attached(diffusion.unet, bank, routing))
        elif bank is not None:
            stack.enter_context(merged(diffusion.unet, bank))
        if predictor is None:
            stack.enter_context(text_kept(diffusion.unet))
        latents = sample_ddim(denoise, noise.to(diffusion.unet.device), diffusion.scheduler, drawing.steps)
    masks = None if rule is None else mean_mask(rule, slice(n, 2 * n), resolution // factor)
    return diffusion.decode(latents), masks
