"""Several concepts in one image: how their masks divide it (the paper's future work).

Each concept's map makes a mask as a single concept's does (:mod:`persres.sampling.mask_config`). A pixel inside several masks goes to the
concept whose map is highest there, relative to the means of its two Otsu classes: a token with more attention everywhere takes nothing
from the others. Pixels outside all masks are the base model's. So Σ_k M_k ≤ 1; full masks are the plain sum of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from persres.errors import PersresError
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import add_concept_token
from persres.sampling.masks import otsu_means

MAX_CONCEPTS = 4  # in one image
# (maps, masks, shape) -> masks; maps and masks are [K, n, pixels]
Split = Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]


def exclusive(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Masks without overlap: a pixel goes to the map that is highest between the means of its Otsu classes."""
    if len(maps) == 1:
        return masks
    below, above, _ = otsu_means(maps.flatten(0, 1))
    height = (maps.flatten(0, 1) - below) / (above - below).clamp_min(torch.finfo(maps.dtype).tiny)
    height = height.view_as(maps).masked_fill(masks == 0, -torch.inf)
    first = nn.functional.one_hot(height.argmax(0), len(maps)).movedim(-1, 0)
    return masks * first


def swapped(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A negative control: each concept inside the next one's mask."""
    return exclusive(maps, masks, shape).roll(1, 0)


def shared(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A control: all concepts inside the union of their masks."""
    return masks.amax(0, keepdim=True).expand_as(masks)


def halves(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A control without attention: K vertical strips, from the left in the prompt's order."""
    columns = torch.arange(shape[1], device=masks.device) * len(masks) // shape[1]
    strips = nn.functional.one_hot(columns, len(masks)).T[:, None, None].expand(-1, masks.shape[1], shape[0], -1)
    return strips.flatten(2).to(masks)


def halves_back(maps: torch.Tensor, masks: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The same strips from the right."""
    return halves(maps, masks, shape).flip(0)


SPLITS: dict[str, Split] = {f.__name__: f for f in (exclusive, swapped, shared, halves, halves_back)}


def check_count(count: int) -> None:
    """Raises PersresError for no concept and for more than :data:`MAX_CONCEPTS`."""
    if not 1 <= count <= MAX_CONCEPTS:
        raise PersresError(f"{count} concepts in one image; use 1 to {MAX_CONCEPTS}")


def add_numbered_tokens(diffusion: Diffusion, tokens: tuple[str, ...], rare_token: str) -> None:
    """Add ``<v1*>``, ``<v2*>`` … to every text tower, each with the rare token's embedding (paper 3.2)."""
    for token in tokens:
        for tower in diffusion.towers:
            add_concept_token(*tower, token, rare_token)
