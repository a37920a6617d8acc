"""Routing and masks for passes that another pipeline makes: what each pass holds is seen only when it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError
from persres.residuals.bank import Routing
from persres.sampling.lag import UNCOND_RULES, guidance_rule
from persres.sampling.mask_config import MaskConfig
from persres.sampling.multi_concept import MultiConceptRouting, multi_concept_rule


class Passes:
    """Fits routing and masks to each pass through the U-Net: guided, [unconditional; conditional], or not. Raises PersresError for another
    ``uncond_rule``, and in a pass of any other number of samples under LAG."""

    def __init__(self, strength: float, uncond_rule: str, lag: bool) -> None:
        if uncond_rule not in UNCOND_RULES:
            raise PersresError(f"unknown uncond_rule {uncond_rule!r}; one of {', '.join(UNCOND_RULES)}")
        self.strength, self.uncond_rule, self.lag = strength, uncond_rule, lag
        self.routing, self.rule = Routing.everywhere(1), None
        self.conditional: torch.Tensor | None = None  # the tokens of one sample each
        self.unmasked: torch.Tensor | None = None  # those that are not masked at all
        self.size, self.guided = (0, 0), False

    def conditional_of(self, seen: torch.Tensor) -> torch.Tensor:
        """The conditional samples' rows."""
        return seen[len(seen) // 2 :] if self.guided else seen

    @contextmanager
    def watching(self, unet: nn.Module) -> Iterator[None]:
        """Before every pass within the context."""
        handle = unet.register_forward_pre_hook(self._before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _before(self, _unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        sample = args[0] if args else named["sample"]
        self.size = tuple(sample.shape[-2:])
        if not self.lag:
            routing = Routing.everywhere(len(sample), sample.device)
        else:
            routing = self._masked(len(sample))
            self.rule.steps += 1
        self.routing.rows, self.routing.weight = routing.rows, routing.weight * self.strength

    def _masked(self, n: int) -> Routing:
        rule = self.rule
        if self.conditional is None:
            self.conditional, self.unmasked = rule.tokens, rule.everywhere[len(rule.tokens) :]
        count = len(self.conditional)
        self.guided = n == 2 * count
        if self.guided:
            routing, fitted = guidance_rule(self.conditional, self.uncond_rule, unmasked=self.unmasked)
            rule.rows, rule.mask_from, rule.everywhere = fitted.rows, fitted.mask_from, fitted.everywhere
            return routing
        if n != count:
            raise PersresError(
                f"lag: {n} samples in a pass for {count} prompts; this way of guidance is not known here"
            )
        device = self.conditional.device
        rule.rows, rule.mask_from, rule.everywhere = slice(None), torch.arange(n, device=device), self.unmasked
        return Routing.everywhere(n, device)


class MultiConceptPasses(Passes):
    """The same for several residuals; ``tokens`` [K, n, length] of the conditional samples."""

    def __init__(
        self, strength: float, uncond_rule: str, tokens: torch.Tensor, mask_config: MaskConfig | None, record: bool
    ) -> None:
        super().__init__(strength, uncond_rule, mask_config is not None)
        self.tokens = tokens
        if mask_config is None:
            self.routing = MultiConceptRouting(torch.arange(len(tokens), device=tokens.device)[:, None], torch.ones(1))
        else:
            self.routing, self.rule = multi_concept_rule(tokens, uncond_rule, mask_config, record=record)

    def _before(self, _unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        sample = args[0] if args else named["sample"]
        self.size, (k, n) = tuple(sample.shape[-2:]), self.tokens.shape[:2]
        self.guided = len(sample) == 2 * n
        if not self.guided and len(sample) != n:
            raise PersresError(
                f"{len(sample)} samples in a pass for {n} prompts; this way of guidance is not known here"
            )
        routing, fitted = multi_concept_rule(self.tokens, self.uncond_rule)
        if self.rule is not None:
            rule, rows = self.rule, slice(None) if self.guided else slice(n, None)
            rule.steps += 1
            rule.tokens, rule.rows = fitted.tokens, fitted.rows if self.guided else slice(None)
            rule.everywhere = fitted.everywhere.unflatten(0, (k, -1))[:, rows].flatten(0, 1)
            rule.mask_from = fitted.mask_from if self.guided else torch.arange(k * n, device=sample.device)
        self.routing.rows = routing.rows[:, : len(sample)]
        weight = routing.weight[-len(sample) :] if self.lag else torch.ones(len(sample), device=sample.device)
        self.routing.weight = weight * self.strength

    def conditional_of(self, seen: torch.Tensor) -> torch.Tensor:
        """Of K·n rows, [n·K, pixels]."""
        every = seen.unflatten(0, (len(self.tokens), -1))
        return every[:, -self.tokens.shape[1] :].transpose(0, 1).flatten(0, 1)


def mean_masks(passes: Passes) -> torch.Tensor:
    """The conditional samples' masks over blocks and steps, float [n, h, w] in [0, 1], for pictures of any shape."""
    height, width = passes.size
    total = []
    for seen in passes.rule.seen.values():
        picked = passes.conditional_of(seen)
        coarse = round((height * width / picked.shape[1]) ** 0.5)  # pixels of the latents to one of this block's
        picked = picked.float().view(len(picked), 1, -(-height // coarse), -(-width // coarse))
        total.append(nn.functional.interpolate(picked, size=(height, width), mode="nearest")[:, 0])
    found = torch.stack(total).mean(0) / max(1, passes.rule.steps)
    return found.unflatten(0, (-1, len(passes.tokens))) if isinstance(passes, MultiConceptPasses) else found
