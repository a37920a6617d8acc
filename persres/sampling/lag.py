"""Localized attention-guided sampling (paper 3.3), for one concept or several in one image.

In block i the attention maps of the V* and macro-class tokens are summed and binarised at their median; the residual of that block acts
inside the mask only. LAG needs no further U-Net pass.

K concepts share one softmax, so their maps compare. :mod:`persres.sampling.multi_concept` says which concept takes a pixel that
several masks contain. Block i of a sample returns f + Σ_k M_ik ⊗ ΔW_ik x.

In SDXL one output projection follows 2 or 10 transformer layers, each with a cross-attention. The paper does not cover this case. Here
the maps are averaged with equal weights before the median: the residual acts on the output of all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from persres.errors import PersresError
from persres.models.attention import is_plain, token_shares, watch_heads
from persres.models.call_hooks import CallHooks, innermost, unwrapped
from persres.models.text_encoding import concept_positions
from persres.residuals.bank import Routing
from persres.sampling.mask_config import CONFIDENCE_WEIGHTED, PAPER, MaskConfig, blended, confidence
from persres.sampling.masks import Generators
from persres.sampling.multi_concept import Split, check_count, exclusive

UNCOND_RULES = ("mask", "base", "full")


def concept_tokens(tokenizer, prompts: list[str], phrases: list[tuple[str, ...]]) -> torch.Tensor:
    """The positions of each prompt's K phrases, float [K, n, length]. Raises PersresError where a phrase is not in its prompt."""
    rows = [[concept_positions(tokenizer, p, phrase) for phrase in k] for p, k in zip(prompts, phrases, strict=True)]
    return torch.stack([torch.stack(row) for row in rows]).transpose(0, 1).contiguous()


@dataclass
class MaskRule:
    """The masks of a batch of n images with K concepts.

    ``tokens`` float [K, n, length]: 1 at the V* and macro-class tokens of each concept. ``uncond_rule``: see :func:`guidance_rule`.
    ``unmasked`` bool [n]: images that take the whole residual. ``draws``: n generators, for masks that need random numbers.
    Attention maps of the concepts are K·n rows, concept by concept.

    Raises PersresError for an unknown ``uncond_rule``, more than :data:`persres.sampling.multi_concept.MAX_CONCEPTS` concepts, and
    a control or a policy under several concepts.
    """

    tokens: torch.Tensor
    uncond_rule: str = "mask"
    mask_config: MaskConfig = PAPER
    unmasked: torch.Tensor | None = None
    split: Split = exclusive
    draws: Generators | None = None
    record: bool = False
    newest: dict[str, torch.Tensor] = field(default_factory=dict)  # source block -> its newest map [K·n, h, w]
    confidences: dict[str, torch.Tensor] = field(default_factory=dict)  # block -> confidence of that map [K·n]
    smoothed: dict[str, torch.Tensor] = field(default_factory=dict)  # block -> its smoothed map [K·n, h, w]
    mask_sums: dict[str, torch.Tensor] = field(default_factory=dict)  # layer path -> summed masks [K, n, pixels]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # layer path -> height and width of those
    recorded: Counter[str] = field(default_factory=Counter)  # layer path -> number of masks in the sum

    def __post_init__(self) -> None:
        check_uncond_rule(self.uncond_rule)
        check_count(len(self.tokens))
        if len(self.tokens) > 1 and (self.mask_config.policy != "always" or self.mask_config.control is not None):
            raise PersresError("several concepts need their own masks: set mask_when: always and no mask_control")
        if self.unmasked is None:
            self.unmasked = torch.zeros(self.tokens.shape[1], dtype=torch.bool, device=self.tokens.device)
        self.fit(self.tokens.shape[1])

    def fit(self, count: int) -> Routing:
        """Fit the masks to a pass of ``count`` samples and return its routing.

        A pass holds [unconditional; conditional] samples, or the conditional ones alone. Raises PersresError for another number.
        """
        (k, n), device = self.tokens.shape[:2], self.tokens.device
        if count not in (n, 2 * n):
            raise PersresError(
                f"lag: a pass of {count} samples for {n} prompts; use classifier-free guidance with both branches in one pass, or none"
            )
        routing = Routing.everywhere(count, device, k)
        self.rows = slice(count - n, count)  # the samples whose attention is read
        self.mask_from = torch.arange(n, device=device).repeat(count // n)
        self.everywhere = self.unmasked.repeat(count // n)
        if count == 2 * n:
            routing.weight[:n] = 0.0 if self.uncond_rule == "base" else 1.0
            self.everywhere[:n] |= self.uncond_rule == "full"
        return routing

    def concept_attention(
        self, query: torch.Tensor, key: torch.Tensor, scale: float, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The concepts' attention in one layer, [K·n, pixels]; see :func:`persres.models.attention.token_shares`."""
        bias = None if bias is None else bias[self.rows]
        shares = token_shares(query[self.rows], key[self.rows], self.tokens.transpose(0, 1), scale, bias)
        return shares.transpose(0, 1).flatten(0, 1)

    def finish(self, path: str, attention: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The masks [K, samples, pixels] of a layer from its concept attention [K·n, pixels] of this height and width."""
        block = path.removesuffix(".proj_out")
        maps = self._smooth(block, attention.float().unflatten(1, shape))
        if self.mask_config.is_source(block):
            self.newest[block] = maps
            if self.mask_config.source_blocks == CONFIDENCE_WEIGHTED:
                self.confidences[block] = confidence(maps)
        masks = self.mask_at(shape, maps)
        if self.record:
            self.mask_sums[path] = self.mask_sums.get(path, 0) + masks[:, self.rows]
            self.shapes[path] = shape
            self.recorded[path] += 1
        return masks

    def mask_at(self, shape: tuple[int, int], maps: torch.Tensor | None = None) -> torch.Tensor:
        """The masks [K, samples, pixels] at a height and width: from the shared map, or from a block's ``maps`` [K·n, h, w].

        The block's maps decide where every block has its own mask, and before the first shared map. Blocks before the first source take
        the shared map of the previous step. Without any map the masks are ones.
        """
        k, config = len(self.tokens), self.mask_config
        if config.shared and self.newest:
            maps = blended(list(self.newest.values()), list(self.confidences.values()) or None, shape)
        elif maps is not None:
            maps = maps.flatten(1)
        else:
            return torch.ones(k, len(self.mask_from), shape[0] * shape[1], device=self.mask_from.device)
        masks = config.mask(maps, shape, self.draws).unflatten(0, (k, -1))
        masks = self.split(maps.unflatten(0, (k, -1)), masks, shape)
        uncertain = config.uncertain(list(self.confidences.values()))
        if uncertain is not None:
            masks = torch.where(uncertain.view(k, -1, 1), torch.ones_like(masks), masks)
        masks = masks[:, self.mask_from]
        return torch.where(self.everywhere[:, None], torch.ones_like(masks), masks)

    def _smooth(self, block: str, maps: torch.Tensor) -> torch.Tensor:
        """The block's maps with their share of the previous steps."""
        if not self.mask_config.smooth:
            return maps
        previous = self.smoothed.get(block)
        self.smoothed[block] = maps if previous is None else torch.lerp(maps, previous, self.mask_config.smooth)
        return self.smoothed[block]


def check_uncond_rule(uncond_rule: str) -> None:
    """Raises PersresError for an unknown rule of the unconditional branch."""
    if uncond_rule not in UNCOND_RULES:
        raise PersresError(f"unknown uncond_rule {uncond_rule!r}; use one of {', '.join(UNCOND_RULES)}")


def guidance_rule(
    tokens: torch.Tensor,
    uncond_rule: str = "mask",
    mask_config: MaskConfig = PAPER,
    unmasked: torch.Tensor | None = None,
    split: Split = exclusive,
) -> tuple[Routing, MaskRule]:
    """Routing and masks of a guided batch [unconditional; conditional].

    The attention of the conditional branch makes the masks. The paper does not say what the unconditional branch takes: under
    ``mask`` its partner's masks, under ``base`` no residual, under ``full`` the whole residual. Arguments are those of
    :class:`MaskRule`.
    """
    rule = MaskRule(tokens, uncond_rule, mask_config, unmasked, split)
    return rule.fit(2 * tokens.shape[1]), rule


@contextmanager
def lag_hooks(unet: nn.Module, routing: Routing, rule: MaskRule) -> Iterator[None]:
    """Within the context each forward pass fills ``routing.masks`` just before a block's output projection needs it.

    Attention processors stay in place. Raises PersresError for an unknown source block and for attention of another kind than Stable
    Diffusion's.
    """
    _check_sources(unet, rule)
    hooks = CallHooks(unet)
    for path, block in transformer_blocks(unet).items():
        _watch(f"{path}.proj_out", block, hooks, routing, rule)
    try:
        with hooks:
            yield
    finally:
        routing.masks.clear()


def transformer_blocks(unet: nn.Module) -> dict[str, Transformer2DModel]:
    """A U-Net's transformer blocks by path."""
    return {path: module for path, module in unwrapped(unet).named_modules() if isinstance(module, Transformer2DModel)}


def size_of(args: tuple, named: dict) -> tuple[int, int]:
    """Height and width of a block's or a U-Net's input [n, channels, height, width], its first argument."""
    first = args[0] if args else named.get("hidden_states", named.get("sample"))
    return tuple(first.shape[-2:])


def check_plain(path: str, attn: Attention) -> None:
    """Raises PersresError for an attention that is not Stable Diffusion's."""
    if not is_plain(attn):
        raise PersresError(
            f"{path}: this attention normalises its inputs or has several sources of keys; LAG supports Stable Diffusion's plain one only"
        )


def _check_sources(unet: nn.Module, rule: MaskRule) -> None:
    blocks = transformer_blocks(unet)
    sources = rule.mask_config.source_blocks
    unknown = [] if sources == CONFIDENCE_WEIGHTED else [block for block in sources if block not in blocks]
    if unknown:
        raise PersresError(f"mask_blocks: this model has no block {', '.join(unknown)}; it has {', '.join(blocks)}")


def _watch(path: str, block: Transformer2DModel, hooks: CallHooks, routing: Routing, rule: MaskRule) -> None:
    maps: list[torch.Tensor] = []
    shape: list[int] = []

    def before_block(_module: nn.Module, args: tuple, named: dict) -> None:
        shape[:] = size_of(args, named)
        maps.clear()  # of a pass that was broken off

    def before_proj_out(_module: nn.Module, _args: tuple, _named: dict) -> None:
        attention = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        routing.masks[path] = rule.finish(path, attention, (shape[0], shape[1]))

    hooks.add_before(block, before_block)
    for layer in block.transformer_blocks:
        check_plain(path, layer.attn2)
        watch_heads(hooks, layer.attn2, lambda *parts: maps.append(rule.concept_attention(*parts)))
    hooks.add_before(innermost(block.proj_out), before_proj_out)


def mean_masks(rule: MaskRule, size: tuple[int, int]) -> torch.Tensor:
    """Recorded masks of the n images, averaged over blocks and steps, float [n, K, height, width] in [0, 1]."""
    resized = [
        nn.functional.interpolate(
            sums.transpose(0, 1).float().unflatten(-1, rule.shapes[path]), size=size, mode="nearest"
        )
        for path, sums in rule.mask_sums.items()
    ]
    return torch.stack(resized).mean(0) / max(1, *rule.recorded.values())
