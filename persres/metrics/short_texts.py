"""Encode texts without padding: CLIP's text encoder is causal and pools at the end token, so padding after it has no effect.

A word of 4 tokens then costs 4 positions, not 77. open_clip's encoders require all positions (mask and position embeddings have
full length), so both are cut during a call. Bidirectional encoders, and those that pad or pool elsewhere, run unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn


def _tower(model: nn.Module) -> tuple[nn.Module, str | None, int | None]:
    """The module with positions and mask, its pooling type, and its end token."""
    if isinstance(model, open_clip.CLIP):
        return model, model.text_pool_type, model.text_eos_id
    text = getattr(model, "text", None)
    if isinstance(text, TextTransformer) and text.cls_emb is None and not text.use_pad_mask:
        return text, text.pool_type, text.eos_id
    return model, None, None


def can_shorten(model: nn.Module) -> bool:
    """Whether the text encoder is causal and pools at the end token."""
    tower, pool, _ = _tower(model)
    return pool in ("argmax", "eos") and tower.attn_mask is not None


def lengths(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Number of positions up to the pooled one, long [n], of tokens [n, context]; all where :func:`can_shorten` is false."""
    if not can_shorten(model):
        return torch.full((len(tokens),), tokens.shape[1])
    _, pool, end = _tower(model)
    return (tokens.argmax(1) if pool == "argmax" else (tokens == end).int().argmax(1)) + 1


@contextmanager
def context_of(model: nn.Module, length: int) -> Iterator[None]:
    """Within the context the text encoder takes tokens [n, length]; on exit it has its original tensors."""
    if not can_shorten(model):
        yield
        return
    tower, _, _ = _tower(model)
    positions, mask = tower.positional_embedding, tower.attn_mask
    try:
        tower.positional_embedding = nn.Parameter(positions[:length], requires_grad=False)
        tower.attn_mask = mask[:length, :length]
        yield
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
