"""Localized attention-guided sampling: where the concept is, read off the cross-attention (paper 3.3).

In block i the attention maps of the V* and macro-class tokens are summed and binarised at their
median; the residual of that block acts inside the mask only. No further U-Net pass is made.

A choice of ours, for models that the paper does not speak of: in SDXL one output projection stands behind 2 or 10
transformer layers, each with a cross-attention. Their maps are averaged, all with the same weight, before the median: the residual acts
on what all of them made together, and no layer of the block is known to localise better than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from persres.errors import PersresError
from persres.models.attention import TextKVCache, attended, is_plain, projected, split_heads, token_shares
from persres.residuals.bank import Routing
from persres.sampling.mask_config import CONFIDENCE_WEIGHTED, PAPER, MaskConfig, blended, confidence
from persres.sampling.masks import Generators

UNCOND_RULES = ("mask", "base", "full")


@dataclass
class MaskRule:
    """How one batch is masked.

    ``rows`` of the batch are listened to, s of its n samples: those whose masks are taken. ``tokens`` float [s, text length]: 1 at
    the V* and macro-class tokens of each one's prompt. ``mask_from`` long [n]: whose mask a sample takes, of the s (the unconditional
    branch takes its partner's). ``everywhere`` bool [n]: samples that take the whole residual.
    """

    tokens: torch.Tensor
    mask_from: torch.Tensor
    everywhere: torch.Tensor
    record: bool = False
    mask_config: MaskConfig = PAPER
    draws: Generators | None = None  # s generators, for masks that draw at random
    rows: slice = field(default_factory=lambda: slice(None))
    newest: dict[str, torch.Tensor] = field(default_factory=dict)  # block -> its newest map [s, h, w]
    trust: dict[str, torch.Tensor] = field(default_factory=dict)  # block -> confidence of that map [s]
    seen: dict[str, torch.Tensor] = field(default_factory=dict)  # layer path -> summed masks [n, pixels]
    before: dict[str, torch.Tensor] = field(default_factory=dict)  # block -> its smoothed map [s, h, w]
    steps: int = 0

    def concept_attention(
        self, query: torch.Tensor, key: torch.Tensor, scale: float, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The concept's attention, [s, pixels], in a layer's heads; see :func:`persres.models.attention.token_shares`."""
        bias = None if bias is None else bias[self.rows]
        return token_shares(query[self.rows], key[self.rows], self.tokens[:, None], scale, bias)[:, 0]

    def finish(self, path: str, attention: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The mask [n, pixels] of a layer from the concept's attention [s, pixels] of this height and width."""
        block = path.removesuffix(".proj_out")
        own = self._smoothed(block, attention.float().unflatten(1, shape))
        if self.mask_config.is_source(block):
            self.newest[block] = own
            if self.mask_config.blocks == CONFIDENCE_WEIGHTED:
                self.trust[block] = confidence(own)
        mask = self.mask_at(shape, own)
        if self.record:
            self.seen[path] = self.seen.get(path, 0) + mask
        return mask

    def mask_at(self, shape: tuple[int, int], own: torch.Tensor | None = None) -> torch.Tensor:
        """The mask [n, pixels] at a height and width: by the shared map, or by a block's ``own`` [s, h, w] where each has its own
        or nothing is shared yet. Blocks before the first source take the maps of the sampling step before; in the very first step,
        their own. Without either, everything."""
        n = len(self.mask_from)
        if not (self.mask_config.shared and self.newest):
            if own is None:
                return torch.ones(n, shape[0] * shape[1], device=self.mask_from.device)
            found = own.flatten(1)
        else:
            found = blended(list(self.newest.values()), list(self.trust.values()) or None, shape)
        mask, unsure = self.cut(found, shape), self.mask_config.unsure(list(self.trust.values()))
        if unsure is not None:
            mask = torch.where(unsure[:, None], torch.ones_like(mask), mask)
        mask = mask[self.mask_from]
        return torch.where(self.everywhere[:, None], torch.ones_like(mask), mask)

    def cut(self, found: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The mask [s, pixels] of maps [s, pixels], before branches and samples that go unmasked are seen to."""
        return self.mask_config.cut(found, shape, self.draws)

    def _smoothed(self, block: str, own: torch.Tensor) -> torch.Tensor:
        """The block's map with its share of the steps before."""
        if not self.mask_config.smooth:
            return own
        before = self.before.get(block)
        self.before[block] = own if before is None else torch.lerp(own, before, self.mask_config.smooth)
        return self.before[block]


def guidance_rule(
    tokens: torch.Tensor,
    uncond_rule: str,
    mask_config: MaskConfig = PAPER,
    draws: Generators | None = None,
    record: bool = False,
    unmasked: torch.Tensor | None = None,
) -> tuple[Routing, MaskRule]:
    """How a guided batch [unconditional; conditional] takes the residual, in one place.

    ``tokens`` [n, length] are the conditional half's. The conditional branch is masked by its own attention. The unconditional
    one, of which the paper doesn't speak, takes under ``mask`` its partner's mask, under ``base`` no residual, under ``full`` the whole.
    ``unmasked`` bool [n]: pictures that take the residual everywhere.
    Raises PersresError for another rule.
    """
    if uncond_rule not in UNCOND_RULES:
        raise PersresError(f"unknown uncond_rule {uncond_rule!r}; one of {', '.join(UNCOND_RULES)}")
    n, device = len(tokens), tokens.device
    routing = Routing.everywhere(2 * n, device)
    routing.weight[:n] = 0.0 if uncond_rule == "base" else 1.0
    everywhere = torch.zeros(2 * n, dtype=torch.bool, device=device)
    if unmasked is not None:
        everywhere[:] = torch.cat([unmasked, unmasked])
    everywhere[:n] |= uncond_rule == "full"
    partner = torch.arange(n, device=device).repeat(2)
    return routing, MaskRule(tokens, partner, everywhere, record, mask_config, draws, slice(n, 2 * n))


class LagAttnProcessor:
    """Cross-attention that also reports where the concept is. Its text's keys and values are kept: the text is the same at every step."""

    def __init__(self, rule: MaskRule, report: Callable[[torch.Tensor], None]) -> None:
        self.rule, self.report, self.kept = rule, report, TextKVCache()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers calls a processor."""
        key, value = self.kept.of(attn, encoder_hidden_states)
        query = split_heads(attn, attn.to_q(hidden_states))
        self.report(self.rule.concept_attention(query, key, attn.scale, attention_mask))
        return projected(attn, attended(attn, query, key, value, attention_mask))


@contextmanager
def lag_hooks(unet: nn.Module, routing: Routing, rule: MaskRule) -> Iterator[None]:
    """Within the context each forward pass fills ``routing.masks`` just before the block's output
    projection needs it. The attention processors of before return on exit."""
    before: list[tuple[Attention, object]] = []
    handles: list = []
    _check_sources(unet, rule)
    try:
        for path, module in unet.named_modules():
            if isinstance(module, Transformer2DModel):
                layers = [block.attn2 for block in module.transformer_blocks]
                before += [(layer, layer.processor) for layer in layers]
                handles += _watch(f"{path}.proj_out", module, layers, routing, rule)
        yield
    finally:
        for layer, processor in before:
            layer.set_processor(processor)
        for handle in handles:
            handle.remove()
        routing.masks.clear()


def check_plain(path: str, attn: Attention) -> None:
    """Raises PersresError for an attention that is not Stable Diffusion's."""
    if not is_plain(attn):
        raise PersresError(
            f"{path}: this attention normalises its inputs or reads more than one; LAG knows Stable Diffusion's plain one only"
        )


def _check_sources(unet: nn.Module, rule: MaskRule) -> None:
    known = [path for path, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
    named = () if rule.mask_config.blocks == CONFIDENCE_WEIGHTED else rule.mask_config.blocks
    unknown = [block for block in named if block not in known]
    if unknown:
        raise PersresError(f"mask_blocks: this model has no block {', '.join(unknown)}; it has {', '.join(known)}")


def _watch(path: str, module: Transformer2DModel, layers: list[Attention], routing: Routing, rule: MaskRule) -> list:
    maps: list[torch.Tensor] = []
    shape: list[int] = []

    def before_block(_module: nn.Module, args: tuple, named: dict) -> None:
        shape[:] = (args[0] if args else named["hidden_states"]).shape[-2:]

    def before_proj_out(_module: nn.Module, _args: tuple) -> None:
        found = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        routing.masks[path] = rule.finish(path, found, (shape[0], shape[1]))
        maps.clear()

    for layer in layers:
        check_plain(path, layer)
        layer.set_processor(LagAttnProcessor(rule, maps.append))
    entry = module.register_forward_pre_hook(before_block, with_kwargs=True)
    return [entry, module.proj_out.register_forward_pre_hook(before_proj_out)]


def mean_mask(rule: MaskRule, samples: slice, size: int) -> torch.Tensor:
    """Masks averaged over blocks and steps for some samples, float [n, size, size] in [0, 1]."""
    total = []
    for seen in rule.seen.values():
        picked = seen[samples].float()
        side = round(picked.shape[1] ** 0.5)
        picked = picked.view(len(picked), 1, side, picked.shape[1] // side)
        total.append(nn.functional.interpolate(picked, size=(size, size), mode="nearest")[:, 0])
    return torch.stack(total).mean(0) / max(1, rule.steps)
