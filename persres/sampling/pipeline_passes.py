"""Fits routing and masks to the U-Net passes of another pipeline, whose size is only known pass by pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from persres.models.call_hooks import CallHooks, unwrapped
from persres.residuals.bank import Routing
from persres.sampling.lag import MaskRule, mean_masks


class PipelinePasses:
    """Routing of K residuals in a pipeline's passes, with or without classifier-free guidance.

    ``rule`` None: the residuals act everywhere. Under LAG a pass of another number of samples raises PersresError.
    """

    def __init__(self, concepts: int, strength: float = 1.0, rule: MaskRule | None = None) -> None:
        self.concepts, self.strength, self.rule = concepts, strength, rule
        self.routing, self.size = Routing.everywhere(1, concepts=concepts), (0, 0)

    @contextmanager
    def fitted(self, unet: nn.Module) -> Iterator[None]:
        """Within the context the routing fits every pass of ``unet``."""
        hooks = CallHooks(unet)
        hooks.add_before(unwrapped(unet), self._fit)
        with hooks:
            yield

    def _fit(self, _unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        sample = args[0] if args else named["sample"]
        self.size, count = tuple(sample.shape[-2:]), len(sample)
        fitted = Routing.everywhere(count, sample.device, self.concepts) if self.rule is None else self.rule.fit(count)
        self.routing.rows, self.routing.weight = fitted.rows, fitted.weight * self.strength

    def masks(self) -> torch.Tensor | None:
        """The recorded masks, averaged, float [n, K, h, w] at the latents' size; None without LAG."""
        return None if self.rule is None else mean_masks(self.rule, self.size)
