"""Stable Diffusion's own attention, in parts that LAG and the samplers put together (paper equation 2).

What a cross-attention reads of the text never changes from step to step, so its keys and values are made once; and what a pixel pays some
tokens is asked of the same fused kernels that attend, so that no map of all tokens is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn


def is_plain(attn: nn.Module) -> bool:
    """Whether this is Stable Diffusion's attention, with nothing about it that the functions here leave out: norms of its inputs or
    heads, a second source of keys, a skip connection."""
    more = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.added_kv_proj_dim)
    return not any(part is not None and part is not False for part in more) and not attn.residual_connection


def split_heads(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width / heads], a view."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def attended(
    attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What is read, [n, pixels, width], by heads [n, heads, tokens, d], before the layer's own output projection. ``bias`` [n, 1,
    length] or None is added to the scores, as diffusers passes it."""
    mask = None if bias is None else bias[:, None]
    return F.scaled_dot_product_attention(query, key, value, mask, scale=attn.scale).transpose(1, 2).flatten(2)


def projected(attn: Attention, read: torch.Tensor) -> torch.Tensor:
    """The layer's output projection."""
    return attn.to_out[1](attn.to_out[0](read))


def token_shares(
    query: torch.Tensor, key: torch.Tensor, marks: torch.Tensor, scale: float, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """How much of each pixel's attention goes to marked tokens, averaged over heads, float32 [n, marks, pixels].

    ``query`` [n, heads, pixels, d], ``key`` [n, heads, length, d], ``marks`` [n, marks, length], 1 at the tokens that count. The
    marks stand in the values' place: what is read of them is their columns' sum of softmax(q kᵀ), which is never formed. In
    float32 whatever the model's precision: a median needs more different values than half precision has.
    """
    width, (n, count) = query.shape[-1], marks.shape[:2]
    values = F.pad(marks.float().mT, (0, max(0, width - count)))  # as wide as the keys, which the kernels ask for
    values = values[:, None].expand(n, query.shape[1], *values.shape[1:])
    mask = None if bias is None else bias[:, None].float()
    read = F.scaled_dot_product_attention(query.float(), key.float(), values, mask, scale=scale)
    return read[..., :count].mean(1).mT


class TextKVCache:
    """A cross-attention's keys and values of the text that it last read. They are made anew for another text, and every time where a
    gradient is wanted of them, or where somebody listens to the layers that make them."""

    def __init__(self) -> None:
        self.text: torch.Tensor | None = None
        self.made: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [n, heads, length, d], of a text [n, length, width] that nobody changes in place."""
        concept_attention = attn.to_k._forward_hooks or attn.to_v._forward_hooks
        if self.text is text and not concept_attention:
            return self.made
        made = split_heads(attn, attn.to_k(text)), split_heads(attn, attn.to_v(text))
        if not (concept_attention or made[0].requires_grad or made[1].requires_grad):
            self.text, self.made = text, made
        return made


class CachedTextAttnProcessor:
    """Cross-attention with its text's keys and values kept."""

    def __init__(self) -> None:
        self.kept = TextKVCache()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers calls a processor."""
        key, value = self.kept.of(attn, encoder_hidden_states)
        query = split_heads(attn, attn.to_q(hidden_states))
        return projected(attn, attended(attn, query, key, value, attention_mask))


class RecordingAttnProcessor:
    """Cross-attention with plain softmax that also reports its weights, [n, pixels, length], with their gradient."""

    def __init__(self, report: Callable[[torch.Tensor], None]) -> None:
        self.report = report

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers calls a processor."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        weights = attn.get_attention_scores(query.float(), key.float(), attention_mask)  # [n·heads, pixels, length]
        self.report(weights.unflatten(0, (-1, attn.heads)).mean(1))
        return projected(attn, attn.batch_to_head_dim(weights.to(value.dtype) @ value))


@contextmanager
def cached_text_kv(unet: nn.Module) -> Iterator[None]:
    """Within the context every plain cross-attention keeps what it made of its text, where nobody has put a processor of his own.
    Its weights and its text must not change in place inside. On exit the processors of before return."""
    before = {
        attn: attn.processor
        for name, attn in unet.named_modules()
        if name.endswith("attn2") and type(attn.processor) is AttnProcessor2_0 and is_plain(attn)
    }
    try:
        for attn in before:
            attn.set_processor(CachedTextAttnProcessor())
        yield
    finally:
        for attn, processor in before.items():
            attn.set_processor(processor)
