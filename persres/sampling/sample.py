"""Samples a batch of images: base model, whole residuals (paper 3.2) or residuals inside LAG's masks (3.3).

A batch holds requests of different concepts, prompts and configs; each image is what it is in its own batch, to float tolerance. A GPU
that samples one image of each of eight concepts one by one is idle most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.models.attention import cached_text_kv
from persres.models.conditioning import Conditioning, joined
from persres.models.diffusion import Diffusion
from persres.residuals.bank import ResidualBank, Routing, merged_weights, residual_hooks, stack_banks
from persres.sampling.lag import MaskRule, concept_tokens, guidance_rule, lag_hooks, mean_masks
from persres.sampling.mask_config import mask_config_of, masks_prompt
from persres.sampling.multi_concept import SPLITS
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units.specs import ImageSpec


@dataclass(frozen=True)
class MultiConceptImage:
    """An image of K concepts: their ``phrases`` in the prompt and their ``rows`` of the bank.

    ``plain`` is the prompt without V*. Noise belongs to (seed, ``plain``, ``image``).
    """

    prompt: str
    phrases: tuple[str, ...]
    rows: tuple[int, ...]
    plain: str
    image: int

    @classmethod
    def of(cls, image: ImageSpec | MultiConceptImage) -> MultiConceptImage:
        """An image of one concept takes the bank's first row."""
        return image if isinstance(image, cls) else cls(image.prompt, (image.phrase,), (0,), image.plain, image.image)


@dataclass(frozen=True)
class Request:
    """Images of one config. ``bank`` holds the residuals, None is the base model; ``split`` is one of
    :data:`persres.sampling.multi_concept.SPLITS`; ``predictor`` makes the denoiser of methods that replace the U-Net's."""

    images: Sequence[ImageSpec | MultiConceptImage]
    sampling: SamplingConfig
    bank: ResidualBank | None = None
    split: str = "exclusive"
    predictor: Callable[[Sequence[ImageSpec]], Any] | None = None

    @property
    def masked(self) -> bool:
        """Whether LAG restricts the residual."""
        return bool(self.sampling.lag) and self.bank is not None

    @property
    def mask_settings(self) -> tuple:
        """Settings that the masked requests of a batch share."""
        return mask_config_of(self.sampling), self.sampling.uncond_rule, self.split


class PromptCache:
    """Embeds each prompt once. Valid as long as nothing changes in the text towers."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion, self.embedded = diffusion, {}
        self.unconditional = diffusion.unconditional()

    def __call__(self, prompts: list[str]) -> Conditioning:
        """The conditioning of n prompts, with or without repetitions."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embedded]
        if new:
            states = self.diffusion.encode(new)
            self.embedded |= {prompt: states.rows(i, i + 1) for i, prompt in enumerate(new)}
        return joined([self.embedded[prompt] for prompt in prompts])


def sample_batch(
    diffusion: Diffusion, requests: list[Request], resolution: int, texts: PromptCache | None = None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """For each request its images [n, 3, h, w] in about [-1, 1] and, under LAG, the mean masks.

    Masks are [n, size, size] at the latents' size; of :class:`MultiConceptImage` [n, K, size, size]. ``texts`` caches prompts across
    batches. Raises PersresError where requests differ in the number of steps or concepts, or masked ones in their masks.
    """
    _check(requests)
    unet, first = diffusion.unet, requests[0]
    counts, prompts = [len(r.images) for r in requests], [image.prompt for r in requests for image in r.images]
    noise = torch.cat([_noise(diffusion, r, resolution) for r in requests]).to(unet.device)
    scale = torch.tensor([r.sampling.cfg_scale for r in requests for _ in r.images], device=unet.device)
    texts = PromptCache(diffusion) if texts is None else texts
    predictor = unet if first.predictor is None else first.predictor(first.images)
    denoise = guided(predictor, texts(prompts), texts.unconditional, scale.view(-1, 1, 1, 1))
    with ExitStack() as stack:
        rule = _enter_residuals(stack, diffusion, requests)
        if first.predictor is None:
            stack.enter_context(cached_text_kv(unet))
        latents = sample_ddim(denoise, noise, diffusion.scheduler, first.sampling.steps)
    images = diffusion.decode(latents).split(counts)
    masks = [None] * len(requests) if rule is None else mean_masks(rule, tuple(noise.shape[-2:])).split(counts)
    return [(x, _masks_of(r, m)) for r, x, m in zip(requests, images, masks, strict=True)]


def _check(requests: list[Request]) -> None:
    if len({r.sampling.steps for r in requests}) != 1:
        raise PersresError("requests of one batch need the same number of steps")
    if len({len(MultiConceptImage.of(image).phrases) for r in requests for image in r.images}) != 1:
        raise PersresError("images of one batch need the same number of concepts")
    if len({r.mask_settings for r in requests if r.masked}) > 1:
        raise PersresError("masked requests of one batch need the same masks and uncond_rule")
    if len(requests) > 1 and any(r.predictor is not None for r in requests):
        raise PersresError("a method with its own predictor can't share a batch")


def _noise(diffusion: Diffusion, request: Request, resolution: int) -> torch.Tensor:
    """The starting noise [n, c, h, w] of a request's images."""
    channels, factor = diffusion.latent_shape
    draws = [generator("noise", request.sampling.seed, image.plain, image.image) for image in request.images]
    return starting_noise(draws, (channels, *[resolution // factor] * 2))


def _enter_residuals(stack: ExitStack, diffusion: Diffusion, requests: list[Request]) -> MaskRule | None:
    """Enter the contexts that give every sample its residuals; returns the masks' rule, or None without LAG."""
    banks = [r.bank for r in requests if r.bank is not None]
    if not banks:
        return None
    images = [MultiConceptImage.of(image) for r in requests for image in r.images]
    if len(requests) == 1 and not requests[0].masked and len({i.rows for i in images}) == len(images[0].rows) == 1:
        stack.enter_context(merged_weights(diffusion.unet, banks[0], images[0].rows[0]))
        return None
    routing, rule = _routing(diffusion, requests, images)
    if rule is not None:
        stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
    bank = banks[0] if len(banks) == 1 else stack_banks(banks)
    stack.enter_context(residual_hooks(diffusion.unet, bank, routing))
    return rule


def _routing(
    diffusion: Diffusion, requests: list[Request], images: list[MultiConceptImage]
) -> tuple[Routing, MaskRule | None]:
    """Routing of a batch [unconditional; conditional], and the rule of its masks where a request is masked."""
    device, n, k = diffusion.unet.device, len(images), len(images[0].rows)
    routing, rule = Routing.everywhere(2 * n, device, k), None
    if any(r.masked for r in requests):
        routing, rule = _guidance(diffusion, requests, images)
    routing.rows = torch.tensor(_bank_rows(requests), device=device).T.repeat(1, 2)
    acts = torch.tensor([float(r.bank is not None) for r in requests for _ in r.images], device=device)
    masked = torch.tensor([r.masked for r in requests for _ in r.images], device=device)
    routing.weight[:n] = torch.where(masked, routing.weight[:n], 1.0)  # residuals without LAG act in both branches
    routing.weight *= acts.repeat(2)
    if all(r.bank is not None for r in requests) and (rule is None or rule.uncond_rule != "base"):
        routing.weight = None  # all ones
    return routing, rule


def _bank_rows(requests: list[Request]) -> list[list[int]]:
    """Each image's K rows in the stacked banks; the base model's images have weight 0 and take the first."""
    rows, start = [], 0
    for request in requests:
        concepts = 0 if request.bank is None else request.bank.concepts
        rows += [
            [start + row if concepts else 0 for row in MultiConceptImage.of(image).rows] for image in request.images
        ]
        start += concepts
    return rows


def _guidance(
    diffusion: Diffusion, requests: list[Request], images: list[MultiConceptImage]
) -> tuple[Routing, MaskRule]:
    """LAG's rule for a batch in which only some requests may be masked."""
    origin = [r for r in requests for _ in r.images]
    mask_config, uncond_rule, split = next(r.mask_settings for r in requests if r.masked)

    def draws(pixels: int) -> list[torch.Generator]:
        return [generator("mask", r.sampling.seed, i.plain, i.image, pixels) for r, i in zip(origin, images, strict=True)]  # fmt: skip

    tokens = concept_tokens(diffusion.tokenizer, [i.prompt for i in images], [i.phrases for i in images])
    masked = [r.masked and masks_prompt(mask_config, i.prompt, *i.phrases) for r, i in zip(origin, images, strict=True)]
    device = diffusion.unet.device
    unmasked = ~torch.tensor(masked, device=device)
    routing, rule = guidance_rule(tokens.to(device), uncond_rule, mask_config, unmasked, SPLITS[split])
    rule.draws, rule.record = draws, True
    return routing, rule


def _masks_of(request: Request, masks: torch.Tensor | None) -> torch.Tensor | None:
    """The masks that a request's caller expects."""
    if masks is None or not request.masked:
        return None
    return masks if isinstance(request.images[0], MultiConceptImage) else masks[:, 0]
