"""A batch of pictures that show several concepts each: their prompts, and the draw (:mod:`persres.sampling.multi_concept`)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from persres.config.schema import SamplingConfig
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import add_concept_token, concept_positions
from persres.residuals.bank import ResidualBank
from persres.sampling.lag import lag_hooks, mean_mask
from persres.sampling.mask_config import MaskConfig
from persres.sampling.multi_concept import MultiConceptRouting, Split, multi_concept_hooks, multi_concept_rule
from persres.sampling.samplers import guided, sample_ddim


@dataclass(frozen=True)
class MultiConceptImage:
    """One picture: ``prompt``, the K ``phrases`` that stand in it for the concepts, and whose residuals, ``rows`` of the bank."""

    prompt: str
    phrases: tuple[str, ...]
    rows: tuple[int, ...]


def add_numbered_tokens(diffusion: Diffusion, tokens: tuple[str, ...], rare_token: str) -> None:
    """Make ``<v1*>``, ``<v2*>`` … tokens of every text tower, each with the rare token's embedding (paper 3.2)."""
    for token in tokens:
        for tokenizer, encoder in diffusion.towers:
            add_concept_token(tokenizer, encoder, token, rare_token)


def token_positions(tokenizer, shown: list[MultiConceptImage]) -> torch.Tensor:
    """Where each concept's phrase stands in each prompt, float [K, n, length]. Raises PersresError where it does not."""
    places = [[concept_positions(tokenizer, one.prompt, phrase) for phrase in one.phrases] for one in shown]
    return torch.stack([torch.stack(row) for row in places]).transpose(0, 1).contiguous()


def sample_multi_concept(
    diffusion: Diffusion,
    shown: list[MultiConceptImage],
    noise: torch.Tensor,
    sampling: SamplingConfig,
    bank: ResidualBank | None = None,
    mask_config: MaskConfig | None = None,
    split: Split | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures [n, 3, h, w] in about [-1, 1] from ``noise`` [n, c, h', w'], and the averaged masks [n, K, h', w'] where there are any.

    Without a ``bank`` no residual acts, without a ``masking`` all act everywhere (the sum of their LoRAs). All prompts hold
    the same number of concepts.
    """
    device, n = diffusion.unet.device, len(shown)
    cond = diffusion.encode([one.prompt for one in shown])
    denoise = guided(diffusion.unet, cond, diffusion.unconditional(), sampling.cfg_scale)
    rule = None
    with ExitStack() as stack:
        if bank is not None:
            rows = torch.tensor([one.rows for one in shown], device=device).T
            if mask_config is None:
                routing = MultiConceptRouting(rows.repeat(1, 2), torch.ones(2 * n, device=device))
            else:
                tokens = token_positions(diffusion.tokenizer, shown).to(device)
                how = (sampling.uncond_rule, mask_config) + (() if split is None else (split,))
                routing, rule = multi_concept_rule(tokens, *how, rows=rows, record=True)
                rule.steps = sampling.steps
                stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
            stack.enter_context(multi_concept_hooks(diffusion.unet, bank, routing))
        latents = sample_ddim(denoise, noise.to(device), diffusion.scheduler, sampling.steps)
    return diffusion.decode(latents), None if rule is None else mean_concept_masks(rule, noise.shape[-1])


def mean_concept_masks(rule, size: int) -> torch.Tensor:
    """The conditional samples' masks over blocks and steps, float [n, K, size, size] in [0, 1]."""
    every = mean_mask(rule, slice(None), size).unflatten(0, (rule.concepts, -1))
    return every[:, every.shape[1] // 2 :].transpose(0, 1)
