"""The conditioning of the denoiser: embedded prompts, and what some models add to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Conditioning:
    """n embedded prompts: ``states`` [n, length, width], and ``added`` conditions by the U-Net's names, each [n, ...].

    SDXL adds ``text_embeds``, the pooled prompt, and ``time_ids``, the image's sizes; Stable Diffusion 1.x and 2.x add none.
    """

    states: torch.Tensor
    added: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, value: torch.Tensor | Conditioning) -> Conditioning:
        """A conditioning of bare states, [n, length, width] or of one prompt [length, width]."""
        return value if isinstance(value, Conditioning) else cls(value if value.ndim == 3 else value[None])

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """The conditioning with ``change`` applied to every tensor."""
        return Conditioning(change(self.states), {name: change(value) for name, value in self.added.items()})

    def rows(self, start: int, stop: int) -> Conditioning:
        """The prompts ``start`` to ``stop``."""
        return self.each(lambda value: value[start:stop])

    def expand(self, n: int) -> Conditioning:
        """One prompt repeated for n samples; n prompts stay as they are."""
        return self.each(lambda value: value.expand(n, *value.shape[1:]))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of diffusers' ``UNet2DConditionModel``."""
        return {"encoder_hidden_states": self.states} | ({"added_cond_kwargs": self.added} if self.added else {})


def joined(parts: list[Conditioning]) -> Conditioning:
    """The concatenated prompts of several conditionings."""
    added = {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added}
    return Conditioning(torch.cat([part.states for part in parts]), added)
