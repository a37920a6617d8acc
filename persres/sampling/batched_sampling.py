"""Pictures of different concepts, prompts and ways to draw in one batch: each as it would be in a batch of its own, to float tolerance.

A GPU asked for one picture of each of eight concepts is idle most of the time if it draws them one by one. Here every sample takes its
own concept's residual (or none), everywhere or inside LAG's masks, at its own guidance.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.models.attention import cached_text_kv
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.sampling.lag import MaskRule, guidance_rule, lag_hooks, mean_mask
from persres.sampling.mask_config import masks_prompt
from persres.sampling.multi_concept import stack_banks
from persres.sampling.sample import PromptCache, mask_config_from, noise_of
from persres.sampling.samplers import guided, sample_ddim
from persres.seeding import generator
from persres.units.specs import ImageSpec


@dataclass(frozen=True)
class Request:
    """Some pictures of one concept by one way to draw. ``bank`` holds the concept alone; none: the base model."""

    items: list[ImageSpec]
    sampling: SamplingConfig
    bank: ResidualBank | None = None

    @property
    def masked(self) -> bool:
        """Whether LAG's masks confine it."""
        return bool(self.sampling.lag) and self.bank is not None


def sample_batch(
    diffusion: Diffusion, requests: list[Request], resolution: int, texts: PromptCache | None = None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """For each request its pictures [n, 3, h, w] in about [-1, 1] and, under LAG, the averaged masks [n, size, size].

    Raises PersresError where requests differ in what a batch has one of: steps, and among those under LAG the masks and the
    unconditional branch's rule.
    """
    _check(requests)
    device, factor = diffusion.unet.device, diffusion.latent_shape[1]
    items, counts = [i for r in requests for i in r.items], [len(r.items) for r in requests]
    noise = torch.cat([noise_of(diffusion, r.items, r.sampling.seed, resolution) for r in requests]).to(device)
    texts = PromptCache(diffusion) if texts is None else texts
    scale = torch.tensor([r.sampling.cfg_scale for r in requests for _ in r.items], device=device).view(-1, 1, 1, 1)
    denoise = guided(diffusion.unet, texts([i.prompt for i in items]), texts.unconditional, scale)
    with ExitStack() as stack:
        rule = _enter(stack, diffusion, requests)
        stack.enter_context(cached_text_kv(diffusion.unet))
        latents = sample_ddim(denoise, noise, diffusion.scheduler, requests[0].sampling.steps)
    masks = None if rule is None else mean_mask(rule, slice(len(items), None), resolution // factor).split(counts)
    pictures = diffusion.decode(latents).split(counts)
    return [(p, masks[k] if r.masked else None) for k, (p, r) in enumerate(zip(pictures, requests, strict=True))]


def _check(requests: list[Request]) -> None:
    if len({r.sampling.steps for r in requests}) != 1:
        raise PersresError("pictures of different numbers of steps can't be drawn in one batch")
    if len({(mask_config_from(r.sampling), r.sampling.uncond_rule) for r in requests if r.masked}) > 1:
        raise PersresError("pictures under different masks can't be drawn in one batch")


def _enter(stack: ExitStack, diffusion: Diffusion, requests: list[Request]) -> MaskRule | None:
    """Enter what makes every sample take its own residual; the rule of those that are masked, None where none is."""
    banks = [r.bank for r in requests if r.bank is not None]
    if not banks:
        return None
    routing, rule = _routing(diffusion, requests)
    if rule is not None:
        stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
    stack.enter_context(residual_hooks(diffusion.unet, stack_banks(banks), routing))
    return rule


def _routing(diffusion: Diffusion, requests: list[Request]) -> tuple[Routing, MaskRule | None]:
    device, rows, weights, number = diffusion.unet.device, [], [], 0
    for request in requests:
        rows += [number] * len(request.items)
        weights += [float(request.bank is not None)] * len(request.items)
        number += request.bank is not None
    rows = torch.tensor(rows, device=device).clamp(max=number - 1).repeat(2)
    weight = torch.tensor(weights, device=device).repeat(2)
    masked = [r for r in requests if r.masked]
    if not masked:
        return Routing(rows, weight), None
    routing, rule = _rule(diffusion, requests, masked[0].sampling)
    n = len(weights)
    under_lag = torch.tensor([r.masked for r in requests for _ in r.items], device=device)
    weight[:n] *= torch.where(under_lag, routing.weight[:n], 1.0)  # the others' residuals act in both branches
    return Routing(rows, weight), rule


def _rule(diffusion: Diffusion, requests: list[Request], sampling: SamplingConfig) -> tuple[Routing, MaskRule]:
    """LAG's rule for a batch [unconditional; conditional] in which only some are masked."""
    pairs, mask_config = [(i, r) for r in requests for i in r.items], mask_config_from(sampling)

    def draws(pixels: int) -> list[torch.Generator]:
        return [generator("mask", r.sampling.seed, i.plain, i.image, pixels) for i, r in pairs]

    positions = [concept_positions(diffusion.tokenizer, i.prompt, i.phrase) for i, _ in pairs]
    unmasked = [not (r.masked and masks_prompt(mask_config, i.prompt, i.phrase)) for i, r in pairs]
    device = diffusion.unet.device
    tokens, unmasked = torch.stack(positions).to(device), torch.tensor(unmasked, device=device)
    routing, rule = guidance_rule(tokens, sampling.uncond_rule, mask_config, draws, record=True, unmasked=unmasked)
    rule.steps = sampling.steps
    return routing, rule
