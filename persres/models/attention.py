"""Stable Diffusion's attention, in the parts that LAG and the samplers need (paper equation 2).

The text of a cross-attention is the same at every step, so its keys and values are computed once. The attention to some tokens comes from
the same fused kernels as the output, so no map of all tokens is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import nn

from persres.errors import PersresError
from persres.models.call_hooks import CallHooks, watching_heads


def is_plain(attn: nn.Module) -> bool:
    """Whether this is Stable Diffusion's attention: no norm of inputs or heads, no second source of keys, no skip connection."""
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.added_kv_proj_dim)
    return not any(part is not None and part is not False for part in extras) and not attn.residual_connection


def check_unfused(path: str, model: nn.Module) -> None:
    """Raises PersresError where a layer is a query, key or value that its fused attention would pass by."""
    parent, _, name = path.rpartition(".")
    fused = isinstance(getattr(model.get_submodule(parent), "processor", None), FusedAttnProcessor2_0)
    if fused and name in ("to_q", "to_k", "to_v"):
        raise PersresError(
            f"{path} is fused with others, and a delta on it would not act; call unfuse_qkv_projections() first"
        )


def split_heads(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width / heads], a view."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def key_value(attn: Attention, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a context [n, length, width], each [n, heads, length, d]."""
    return split_heads(attn, attn.to_k(context)), split_heads(attn, attn.to_v(context))


def attended(
    attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The attention's output [n, pixels, width] before its projection, from heads [n, heads, tokens, d].

    ``bias`` [n, 1, length] or None is added to the scores, as diffusers passes it.
    """
    mask = None if bias is None else bias[:, None]
    return F.scaled_dot_product_attention(query, key, value, mask, scale=attn.scale).transpose(1, 2).flatten(2)


def projected(attn: Attention, hidden_states: torch.Tensor) -> torch.Tensor:
    """The output projection of the layer."""
    return attn.to_out[1](attn.to_out[0](hidden_states))


def token_shares(
    query: torch.Tensor, key: torch.Tensor, marks: torch.Tensor, scale: float, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The share of each pixel's attention that goes to marked tokens, averaged over heads, float32 [n, marks, pixels].

    ``query`` [n, heads, pixels, d], ``key`` [n, heads, length, d], ``marks`` [n, marks, length], 1 at the tokens that count. The
    marks take the place of the values: the result is the sum of their columns of softmax(q kᵀ), which is never formed. Computed in
    float32 in any model precision: half precision has too few different values for a median.
    """
    width, (n, count) = query.shape[-1], marks.shape[:2]
    values = F.pad(marks.float().mT, (0, max(0, width - count)))  # the kernels need values as wide as the keys
    values = values[:, None].expand(n, query.shape[1], *values.shape[1:])
    mask = None if bias is None else bias[:, None].float()
    shares = F.scaled_dot_product_attention(query.float(), key.float(), values, mask, scale=scale)
    return shares[..., :count].mean(1).mT


class TextKVCache:
    """Keys and values of the last text of a cross-attention.

    They are computed again for another text, where they need a gradient, and where a hook changes the layers that make them.
    """

    def __init__(self) -> None:
        self.text: torch.Tensor | None = None
        self.made: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`key_value` of a text that is not changed in place."""
        hooked = attn.to_k._forward_hooks or attn.to_v._forward_hooks
        if self.text is text and not hooked:
            return self.made
        made = key_value(attn, text)
        if not (hooked or made[0].requires_grad or made[1].requires_grad):
            self.text, self.made = text, made
        return made


class CachedTextAttnProcessor:
    """Attention that caches keys and values of its text, and gives its heads to the functions that watch them."""

    def __init__(self) -> None:
        self.cache = TextKVCache()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers calls a processor."""
        text = encoder_hidden_states
        key, value = key_value(attn, hidden_states) if text is None else self.cache.of(attn, text)
        query = split_heads(attn, attn.to_q(hidden_states))
        for report in watching_heads(attn):
            report(query, key, attn.scale, attention_mask)
        return projected(attn, attended(attn, query, key, value, attention_mask))


def watch_heads(hooks: CallHooks, attn: Attention, report: Callable[..., None]) -> None:
    """Give ``report`` (query, key, scale, bias) of every pass of a cross-attention, whatever its processor is.

    A processor of our own gives what it computes. For any other the heads are computed before it runs, so that it stays in place.
    """

    def before(module: Attention, args: tuple, named: dict) -> None:
        if isinstance(module.processor, CachedTextAttnProcessor):
            return
        states, text, bias = (_argument(args, named, i, name) for i, name in enumerate(ATTENTION_ARGUMENTS))
        text = text[0] if isinstance(text, tuple) else text  # an IP-Adapter's image comes second
        query, key = split_heads(module, module.to_q(states)), split_heads(module, module.to_k(text))
        report(query, key, module.scale, bias)

    hooks.add_before(attn, before)
    hooks.add_heads(attn, report)


ATTENTION_ARGUMENTS = ("hidden_states", "encoder_hidden_states", "attention_mask")  # of diffusers' Attention


def _argument(args: tuple, named: dict, index: int, name: str) -> torch.Tensor | None:
    return args[index] if index < len(args) else named.get(name)


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
    """Within the context every plain cross-attention with diffusers' default processor caches keys and values of its text.

    Weights and texts must not change in place inside. The previous processors return on exit.
    """
    previous = {
        attn: attn.processor
        for name, attn in unet.named_modules()
        if name.endswith("attn2") and type(attn.processor) is AttnProcessor2_0 and is_plain(attn)
    }
    try:
        for attn in previous:
            attn.set_processor(CachedTextAttnProcessor())
        yield
    finally:
        for attn, processor in previous.items():
            attn.set_processor(processor)
