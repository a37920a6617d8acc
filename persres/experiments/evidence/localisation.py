"""Does the concept's cross-attention lie on the object? Measured on scenes whose masks are known.

Scenes are noised to several t, one pass is made, and each block's summed attention is compared with the true mask
of the concept's object: AUC of the map, IoU of its median mask. Two sets are measured: nameable scenes under the base model, and the
concepts on other backgrounds with their residual acting through LAG, as in sampling. All maps are compared at the
latents' resolution, coarser ones enlarged in squares, so that figures of different blocks can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions, encode_prompts
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.sampling.lag import MaskRule, lag_hooks
from persres.sampling.masks import central_disk, median, upper_half
from persres.seeding import generator

STEPS = (200, 400, 600, 800)
TOKENS = ("both", "class", "v")  # V* and class summed, as LAG does; the class alone; V* alone


@dataclass(frozen=True)
class Case:
    """Scenes of one prompt form: latents [n, c, s, s], ``truth`` bool [n, s, s], prompts, and the class in each."""

    latents: torch.Tensor
    truth: torch.Tensor
    prompts: list[str]
    classes: list[str]


@dataclass
class _Listener(MaskRule):
    """A mask rule that also keeps the attention it was given."""

    listened: dict[str, torch.Tensor] = field(default_factory=dict)

    def finish(self, path: str, attention: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        self.listened[path] = attention
        return super().finish(path, attention, shape)


def _listener(tokens: torch.Tensor) -> _Listener:
    return _Listener(tokens[None])


def _positions(diffusion: Diffusion, case: Case, token: str, which: str) -> torch.Tensor:
    rows = []
    for prompt, kind in zip(case.prompts, case.classes, strict=True):
        found = concept_positions(
            diffusion.tokenizer, prompt, f"{token} {kind}"
        )  # this mention of the class, not another's
        words = found.nonzero().flatten()
        v = len(diffusion.tokenizer(token, add_special_tokens=False).input_ids)
        keep = {"both": words, "class": words[v:], "v": words[:v]}[which]
        rows.append(torch.zeros_like(found).index_fill_(0, keep, 1.0))
    return torch.stack(rows).to(diffusion.unet.device)


@torch.no_grad()
def attention_maps(
    diffusion: Diffusion,
    case: Case,
    token: str,
    bank: ResidualBank | None,
    t: int,
    which: str = "both",
    batch: int = 50,
) -> dict[str, torch.Tensor]:
    """Summed attention of each block by layer path, [n, pixels], of the case's latents noised to ``t``, on the model's
    device."""
    parts: list[dict[str, torch.Tensor]] = []
    device = diffusion.unet.device
    for rows in torch.arange(len(case.prompts)).split(batch):
        piece = Case(
            case.latents[rows], case.truth[rows], [case.prompts[i] for i in rows], [case.classes[i] for i in rows]
        )
        noise = torch.stack(
            [torch.randn(case.latents.shape[1:], generator=generator("localise", int(i), t)) for i in rows]
        ).to(device)
        times = torch.full((len(rows),), t, device=device)
        text = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, piece.prompts)
        rule, routing = _listener(_positions(diffusion, piece, token, which)), Routing.everywhere(len(rows), device)
        with ExitStack() as stack:
            stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
            if bank is not None:
                stack.enter_context(residual_hooks(diffusion.unet, bank, routing))
            diffusion.unet(
                diffusion.scheduler.add_noise(piece.latents, noise, times), times, encoder_hidden_states=text
            )
        parts.append({path.removesuffix(".proj_out"): seen for path, seen in rule.listened.items()})
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def upsampled(maps: torch.Tensor, side: int) -> torch.Tensor:
    """[n, pixels] of a square block -> [n, side·side], each pixel a square."""
    own = round(maps.shape[1] ** 0.5)
    return F.interpolate(maps.view(len(maps), 1, own, own), size=(side, side), mode="nearest").flatten(1)


def auc(maps: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Chance that a pixel of the object has more attention than one outside, ties half, [n]. Both [n, pixels]."""
    inside, outside = truth.double(), 1 - truth.double()
    above = (maps[:, :, None] > maps[:, None, :]).double() + 0.5 * (maps[:, :, None] == maps[:, None, :]).double()
    won = torch.einsum("np,npq,nq->n", inside, above, outside)
    return won / (inside.sum(1) * outside.sum(1))


def iou(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Intersection over union, [n]. Both [n, pixels], masks 0 or 1."""
    masks, truth = masks.bool(), truth.bool()
    return (masks & truth).sum(1).double() / (masks | truth).sum(1)


def half_mask_ceiling(truth: torch.Tensor) -> torch.Tensor:
    """The best IoU that any mask of half of the pixels can have, [n]: min(A, H) / max(A, H) with object area A and H pixels marked."""
    area, half = truth.double().sum(1), truth.shape[1] // 2
    return torch.minimum(area, torch.tensor(float(half))) / area.clamp(min=half)


def baselines(case: Case) -> dict[str, float]:
    """What knows nothing of attention: area, the half mask's ceiling, a random half, a central disk."""
    truth = case.truth.flatten(1)
    pixels, side = truth.shape[1], case.truth.shape[1]
    line = (torch.arange(side) - (side - 1) / 2).square()
    nearness = -(line[:, None] + line[None, :]).flatten().expand(len(truth), -1)
    lottery = torch.rand(len(truth), pixels, generator=generator("lottery", pixels))
    return {
        "object_area": float(truth.double().mean()),
        "half_mask_ceiling_iou": float(half_mask_ceiling(truth).mean()),
        "random_half_iou": float(iou(upper_half(lottery), truth).mean()),
        "disk_iou": float(iou(central_disk(pixels).expand(len(truth), -1), truth).mean()),
        "centre_auc": float(auc(nearness, truth).mean()),
        "scenes": len(truth),
    }


def localisation_rows(
    diffusion: Diffusion, cases: list[tuple[Case, ResidualBank | None]], token: str
) -> Iterator[dict]:
    """One row per tokens, t and block: AUC and IoU, averaged over all scenes of the cases."""
    for which in TOKENS:
        for t in STEPS:
            scores: dict[str, list[torch.Tensor]] = {}
            for case, bank in cases:
                truth, side = case.truth.flatten(1).to(diffusion.unet.device), case.truth.shape[1]
                for block, maps in attention_maps(diffusion, case, token, bank, t, which).items():
                    large, marked = upsampled(maps, side), upsampled(median(maps), side)
                    scores.setdefault(block, []).append(torch.stack([auc(large, truth), iou(marked, truth)]))
            for block, parts in scores.items():
                mean_auc, mean_iou = torch.cat(parts, 1).mean(1).tolist()
                yield {"tokens": which, "t": t, "block": block, "auc": mean_auc, "iou": mean_iou}


def latent_truth(masks: np.ndarray, side: int) -> torch.Tensor:
    """bool [n, h, w] at pixel size -> bool [n, side, side]: cells of which the object fills at least half."""
    shrunk = F.adaptive_avg_pool2d(torch.from_numpy(masks).float()[:, None], side)[:, 0]
    return shrunk >= 0.5
