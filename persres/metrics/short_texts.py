"""Read a text at its own length. CLIP's text tower is causal and pools at the end token, so what is padded behind it
changes nothing: a word of 4 tokens costs 4 positions, not 77.

open_clip's own towers want all positions (their mask, and in ``CLIP`` their position embeddings, are not cut to the
text), so both are cut here for the time of a call. Towers that look both ways, pad inside or pool elsewhere are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn


def _tower(model: nn.Module) -> tuple[nn.Module, str | None, int | None]:
    """The module that holds positions and mask, where it pools, and its end token."""
    if isinstance(model, open_clip.CLIP):
        return model, model.text_pool_type, model.text_eos_id
    text = getattr(model, "text", None)
    if isinstance(text, TextTransformer) and text.cls_emb is None and not text.use_pad_mask:
        return text, text.pool_type, text.eos_id
    return model, None, None


def can_shorten(model: nn.Module) -> bool:
    """Whether the text tower is causal and pools at the end token."""
    tower, pool, _ = _tower(model)
    return pool in ("argmax", "eos") and tower.attn_mask is not None


def lengths(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Positions up to the one that is pooled, long [n], of tokens [n, context]; all of them where nothing may be cut."""
    if not can_shorten(model):
        return torch.full((len(tokens),), tokens.shape[1])
    _, pool, end = _tower(model)
    return (tokens.argmax(1) if pool == "argmax" else (tokens == end).int().argmax(1)) + 1


@contextmanager
def context_of(model: nn.Module, length: int) -> Iterator[None]:
    """Within the context the text tower takes tokens [n, length]; on exit the very tensors of before return."""
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
