"""Several concepts in one picture: each one's residual inside its own mask, in one pass through the U-Net (the paper's future work).

The V* and class tokens of every concept are listened to in the same softmax, so their maps say which concept a pixel asks for. Each map
is cut as one concept's would be (:mod:`persres.sampling.mask_config`); a pixel that several masks hold goes to the concept whose map stands
highest there, over its own two parts' means (Otsu), so that a token that is listened to more everywhere takes nothing from the others.
What no mask holds is the base model's. K concepts and n samples lie as K·n rows, concept by concept, so that all that holds for one
concept's maps (:class:`persres.sampling.lag.MaskRule`) holds for theirs.

Block i of a sample gives f + Σ_k M_ik ⊗ ΔW_ik x, with Σ_k M_ik ≤ 1; with all masks full that is the plain sum of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import pad

from persres.errors import PersresError
from persres.models.attention import token_shares
from persres.residuals.bank import ResidualBank, gate_of
from persres.residuals.targets import TargetLayer
from persres.sampling.lag import UNCOND_RULES, MaskRule
from persres.sampling.mask_config import AUTO, MaskConfig
from persres.sampling.masks import otsu_means

MAX_CONCEPTS = 4  # concepts in a picture
Split = Callable[
    [torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor
]  # maps and masks [K, n, pixels], shape -> masks


def exclusive(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Every pixel at most one concept's: where masks overlap, that whose map stands highest between its own parts' means."""
    if len(maps) == 1:
        return masks
    below, above, _ = otsu_means(maps.flatten(0, 1))
    height = (maps.flatten(0, 1) - below) / (above - below).clamp_min(torch.finfo(maps.dtype).tiny)
    height = height.view_as(maps).masked_fill(masks == 0, -torch.inf)
    first = nn.functional.one_hot(height.argmax(0), len(maps)).movedim(-1, 0)
    return masks * first


def swapped(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Broken on purpose: each concept inside the next one's mask."""
    return exclusive(maps, masks, shape).roll(1, 0)


def shared(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A control: all concepts inside the union of their masks."""
    return masks.amax(0, keepdim=True).expand_as(masks)


def halves(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A control without attention: K upright strips, from the left in the prompt's order."""
    columns = torch.arange(shape[1], device=masks.device) * len(masks) // shape[1]
    strips = nn.functional.one_hot(columns, len(masks)).T[:, None, None].expand(-1, masks.shape[1], shape[0], -1)
    return strips.flatten(2).to(masks)


def halves_back(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The same strips from the right."""
    return halves(maps, masks, shape).flip(0)


SPLITS: dict[str, Split] = {f.__name__: f for f in (exclusive, swapped, shared, halves, halves_back)}


@dataclass
class MultiConceptMaskRule(MaskRule):
    """A :class:`MaskRule` of K·n rows; ``tokens`` [K·s, length], concept by concept, as ``mask_from`` and ``everywhere`` [K·n]."""

    concepts: int = 1
    split: Split = exclusive

    def concept_attention(
        self, query: torch.Tensor, key: torch.Tensor, scale: float, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Every concept's attention, [K·s, pixels], in a layer's heads, all in one softmax."""
        marks, bias = (
            self.tokens.unflatten(0, (self.concepts, -1)).transpose(0, 1),
            bias if bias is None else bias[self.rows],
        )
        return token_shares(query[self.rows], key[self.rows], marks, scale, bias).transpose(0, 1).flatten(0, 1)

    def cut(self, found: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Each map's mask, and no pixel two concepts'. [K·s, pixels] -> same."""
        masks = super().cut(found, shape)
        parts = (x.unflatten(0, (self.concepts, -1)) for x in (found, masks))
        return self.split(*parts, shape).flatten(0, 1)


@dataclass
class MultiConceptRouting:
    """Whose residuals each sample takes: ``rows`` long [K, n] into a bank, ``weight`` float [n] (0: the base model's), ``masks`` [K·n,
    pixels] by layer path; where a path is missing the residuals act everywhere."""

    rows: torch.Tensor
    weight: torch.Tensor
    masks: dict[str, torch.Tensor] = field(default_factory=dict)


def multi_concept_rule(
    tokens: torch.Tensor,
    uncond_rule: str = "mask",
    mask_config: MaskConfig = AUTO,
    split: Split = exclusive,
    rows: torch.Tensor | None = None,
    record: bool = False,
) -> tuple[MultiConceptRouting, MultiConceptMaskRule]:
    """How a guided batch [unconditional; conditional] takes K residuals; see :func:`persres.sampling.lag.guidance_rule`.

    ``tokens`` [K, n, length] are the conditional half's; ``rows`` long [K, n] say whose residuals, none takes the bank's in their order.
    Raises PersresError for another ``uncond_rule``, more concepts than :data:`MOST`, and a masking that leaves pictures unmasked.
    """
    k, n = tokens.shape[:2]
    _check(k, uncond_rule, mask_config)
    device = tokens.device
    rows = torch.arange(k, device=device)[:, None].expand(k, n) if rows is None else rows.to(device)
    routing = MultiConceptRouting(torch.cat([rows, rows], 1), torch.ones(2 * n, device=device))
    routing.weight[:n] = 0.0 if uncond_rule == "base" else 1.0
    everywhere = torch.zeros(k, 2 * n, dtype=torch.bool, device=device)
    everywhere[:, :n] = uncond_rule == "full"
    mask_from = torch.arange(n, device=device).repeat(2) + n * torch.arange(k, device=device)[:, None]
    rule = MultiConceptMaskRule(
        tokens.flatten(0, 1),
        mask_from.flatten(),
        everywhere.flatten(),
        record,
        mask_config,
        rows=slice(n, 2 * n),
        concepts=k,
        split=split,
    )  # mask_at reads no draws
    return routing, rule


def _check(count: int, uncond_rule: str, mask_config: MaskConfig) -> None:
    if uncond_rule not in UNCOND_RULES:
        raise PersresError(f"unknown uncond_rule {uncond_rule!r}; one of {', '.join(UNCOND_RULES)}")
    check_count(count)
    if mask_config.when != "always" or mask_config.control is not None:
        raise PersresError("several concepts need masks of their own: mask_when always and no mask_control")


def check_count(count: int) -> None:
    """Raises PersresError for no concept and for more than :data:`MOST`."""
    if not 1 <= count <= MAX_CONCEPTS:
        raise PersresError(f"{count} concepts in one picture; one to {MAX_CONCEPTS} can be told apart")


def stack_banks(banks: list[ResidualBank]) -> ResidualBank:
    """Banks as one of all their concepts; lower ranks are filled up with zeros, which changes no ΔW.

    Raises PersresError where they are of other layers.
    """
    places = [[(t.path, t.width, t.width_in, t.conv) for t in bank.targets] for bank in banks]
    if any(place != places[0] for place in places):
        raise PersresError("these residuals are of other layers; take residuals of one base model and one target")
    ranks = [max(bank.targets[i].rank for bank in banks) for i in range(len(places[0]))]
    targets = [
        TargetLayer(t.path, t.width, t.conv, r, t.width_in) for t, r in zip(banks[0].targets, ranks, strict=True)
    ]
    whole = ResidualBank(targets, sum(bank.concepts for bank in banks))
    with torch.no_grad():
        for i, rank in enumerate(ranks):
            whole.up[i].copy_(torch.cat([pad(b.up[i].cpu(), (0, rank - b.targets[i].rank)) for b in banks]))
            whole.down[i].copy_(torch.cat([pad(b.down[i].cpu(), (0, 0, 0, rank - b.targets[i].rank)) for b in banks]))
    return whole.to(banks[0].up[0].device).requires_grad_(False)


@contextmanager
def multi_concept_hooks(unet: nn.Module, bank: ResidualBank, routing: MultiConceptRouting) -> Iterator[None]:
    """Within the context every target layer gives f + w·Σ_k M_k ⊗ ΔW_k x. No weight is changed; hooks go on exit."""
    handles = []

    def hook_for(index: int, target: TargetLayer):
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            masks = routing.masks.get(target.path)
            for k, rows in enumerate(routing.rows):
                own = None if masks is None else masks.unflatten(0, (len(routing.rows), -1))[k]
                output = bank.added(index, args[0], output, rows, gate_of(routing.weight, own))
            return output

        return hook

    try:
        for index, target in enumerate(bank.targets):
            handles.append(unet.get_submodule(target.path).register_forward_hook(hook_for(index, target)))
        yield
    finally:
        for handle in handles:
            handle.remove()
