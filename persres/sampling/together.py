"""A batch of pictures that show several concepts each: their prompts, and the draw (:mod:`persres.sampling.several`)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from persres.config import Drawing
from persres.models.diffusion import Diffusion
from persres.models.prompts import add_concept_token, concept_positions
from persres.residuals.bank import ResidualBank
from persres.sampling.lag import localised, mean_mask
from persres.sampling.masking import Masking
from persres.sampling.samplers import guided, sample_ddim
from persres.sampling.several import SeveralRouting, Split, attached_together, several_rule


@dataclass(frozen=True)
class Shown:
    """One picture: ``prompt``, the K ``phrases`` that stand in it for the concepts, and whose residuals, ``rows`` of the bank."""

    prompt: str
    phrases: tuple[str, ...]
    rows: tuple[int, ...]


def number_tokens(diffusion: Diffusion, tokens: tuple[str, ...], rare_token: str) -> None:
    """Make ``<v1*>``, ``<v2*>`` … tokens of every text tower, each with the rare token's embedding (paper 3.2)."""
    for token in tokens:
        for tokenizer, encoder in diffusion.towers:
            add_concept_token(tokenizer, encoder, token, rare_token)


def token_places(tokenizer, shown: list[Shown]) -> torch.Tensor:
    """Where each concept's phrase stands in each prompt, float [K, n, length]. Raises PersresError where it does not."""
    places = [[concept_positions(tokenizer, one.prompt, phrase) for phrase in one.phrases] for one in shown]
    return torch.stack([torch.stack(row) for row in places]).transpose(0, 1).contiguous()


def draw_together(
    diffusion: Diffusion,
    shown: list[Shown],
    noise: torch.Tensor,
    drawing: Drawing,
    bank: ResidualBank | None = None,
    masking: Masking | None = None,
    split: Split | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures [n, 3, h, w] in about [-1, 1] from ``noise`` [n, c, h', w'], and the averaged masks [n, K, h', w'] where there are any.

    Without a ``bank`` no residual acts, without a ``masking`` all act everywhere (the sum of their LoRAs). All prompts hold
    the same number of concepts.
    """
    device, n = diffusion.unet.device, len(shown)
    cond = diffusion.encode([one.prompt for one in shown])
    denoise = guided(diffusion.unet, cond, diffusion.unconditional(), drawing.cfg_scale)
    rule = None
    with ExitStack() as stack:
        if bank is not None:
            rows = torch.tensor([one.rows for one in shown], device=device).T
            if masking is None:
                routing = SeveralRouting(rows.repeat(1, 2), torch.ones(2 * n, device=device))
            else:
                tokens = token_places(diffusion.tokenizer, shown).to(device)
                how = (drawing.uncond_rule, masking) + (() if split is None else (split,))
                routing, rule = several_rule(tokens, *how, rows=rows, record=True)
                rule.steps = drawing.steps
                stack.enter_context(localised(diffusion.unet, routing, rule))
            stack.enter_context(attached_together(diffusion.unet, bank, routing))
        latents = sample_ddim(denoise, noise.to(device), diffusion.scheduler, drawing.steps)
    return diffusion.decode(latents), None if rule is None else masks_of(rule, noise.shape[-1])


def masks_of(rule, size: int) -> torch.Tensor:
    """The conditional samples' masks over blocks and steps, float [n, K, size, size] in [0, 1]."""
    every = mean_mask(rule, slice(None), size).unflatten(0, (rule.concepts, -1))
    return every[:, every.shape[1] // 2 :].transpose(0, 1)
