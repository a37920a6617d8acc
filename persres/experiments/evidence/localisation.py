"""Does the concept's cross-attention lie on the object? Measured on scenes whose masks are known.

Scenes are noised to several t; one pass is made, and each block's summed attention is compared with the true mask of the concept's
object: AUC of the map, IoU of its median mask. There are two sets: nameable scenes under the base model, and the concepts on other
backgrounds with their residual applied through LAG, as in sampling. Maps are compared at the latents' resolution; coarser ones are
upsampled by nearest neighbour, so that blocks are comparable.
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
BATCH = 50  # scenes per pass
TOKENS = ("both", "class", "v")  # V* and class summed, as LAG does; the class alone; V* alone


@dataclass(frozen=True)
class Case:
    """Scenes: latents [n, c, s, s], ``truth`` bool [n, s, s], prompts with V* (``token``), and the class in each."""

    latents: torch.Tensor
    truth: torch.Tensor
    prompts: list[str]
    classes: list[str]
    token: str = "<v*>"


@dataclass
class _RecordingRule(MaskRule):
    """A mask rule that also records the attention maps."""

    recorded: dict[str, torch.Tensor] = field(default_factory=dict)

    def finish(self, path: str, attention: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        self.recorded[path] = attention
        return super().finish(path, attention, shape)


def _recording_rule(tokens: torch.Tensor) -> _RecordingRule:
    return _RecordingRule(tokens[None])


def _positions(diffusion: Diffusion, case: Case, which: str) -> torch.Tensor:
    """Token positions of V*, the class or both, [n, length]. The phrase selects the right mention of the class."""
    v = len(diffusion.tokenizer(case.token, add_special_tokens=False).input_ids)
    selected, rows = {"both": slice(None), "class": slice(v, None), "v": slice(v)}[which], []
    for prompt, kind in zip(case.prompts, case.classes, strict=True):
        positions = concept_positions(diffusion.tokenizer, prompt, f"{case.token} {kind}")
        indices = positions.nonzero().flatten()[selected]
        rows.append(torch.zeros_like(positions).index_fill_(0, indices, 1.0))
    return torch.stack(rows).to(diffusion.unet.device)


@torch.no_grad()
def attention_maps(
    diffusion: Diffusion, case: Case, bank: ResidualBank | None, t: int, which: str = "both"
) -> dict[str, torch.Tensor]:
    """Return the summed attention [n, pixels] of each block, by layer path, with the case's latents noised to ``t``.

    ``which``: the tokens, one of :data:`TOKENS`. ``bank``: the residual to apply. The maps stay on the model's device.
    """
    parts = [
        _batch_maps(diffusion, case, rows, bank, (t, which)) for rows in torch.arange(len(case.prompts)).split(BATCH)
    ]
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def _batch_maps(
    diffusion: Diffusion, case: Case, rows: torch.Tensor, bank: ResidualBank | None, at: tuple[int, str]
) -> dict[str, torch.Tensor]:
    (t, which), device = at, diffusion.unet.device
    prompts, classes = [case.prompts[i] for i in rows], [case.classes[i] for i in rows]
    batch = Case(case.latents[rows], case.truth[rows], prompts, classes, case.token)
    generators = [generator("localise", int(i), t) for i in rows]
    noise = torch.stack([torch.randn(case.latents.shape[1:], generator=g) for g in generators]).to(device)
    times = torch.full((len(rows),), t, device=device)
    text = encode_prompts(diffusion.tokenizer, diffusion.text_encoder, batch.prompts)
    rule, routing = _recording_rule(_positions(diffusion, batch, which)), Routing.everywhere(len(rows), device)
    with ExitStack() as stack:
        stack.enter_context(lag_hooks(diffusion.unet, routing, rule))
        if bank is not None:
            stack.enter_context(residual_hooks(diffusion.unet, bank, routing))
        noisy = diffusion.scheduler.add_noise(batch.latents, noise, times)
        diffusion.unet(noisy, times, encoder_hidden_states=text)
    return {path.removesuffix(".proj_out"): maps for path, maps in rule.recorded.items()}


def upsampled(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Return maps [n, pixels] of a square block as [n, side · side], by nearest neighbour."""
    width = round(maps.shape[1] ** 0.5)
    return F.interpolate(maps.view(len(maps), 1, width, width), size=(side, side), mode="nearest").flatten(1)


def auc(maps: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return [n]: the probability that an object pixel has more attention than another pixel, ties half. Both [n, pixels]."""
    objects, rest = truth.double(), 1 - truth.double()
    above = (maps[:, :, None] > maps[:, None, :]).double() + 0.5 * (maps[:, :, None] == maps[:, None, :]).double()
    won = torch.einsum("np,npq,nq->n", objects, above, rest)
    return won / (objects.sum(1) * rest.sum(1))


def iou(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union, [n]. Both [n, pixels], masks 0 or 1."""
    masks, truth = masks.bool(), truth.bool()
    return (masks & truth).sum(1).double() / (masks | truth).sum(1)


def half_mask_ceiling(truth: torch.Tensor) -> torch.Tensor:
    """Return the best IoU of any mask of H = half of the pixels, [n]: min(A, H) / max(A, H) with object area A."""
    area, half = truth.double().sum(1), truth.shape[1] // 2
    return torch.minimum(area, torch.tensor(float(half))) / area.clamp(min=half)


def baselines(case: Case) -> dict[str, float]:
    """Return figures without attention: object area, the best half mask, a random half, a central disk."""
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


def localisation_rows(diffusion: Diffusion, cases: list[tuple[Case, ResidualBank | None]]) -> Iterator[dict]:
    """Yield a row per tokens, t and block: AUC and IoU, averaged over all scenes of the cases."""
    for which in TOKENS:
        for t in STEPS:
            scores: dict[str, list[torch.Tensor]] = {}
            for case, bank in cases:
                truth, side = case.truth.flatten(1).to(diffusion.unet.device), case.truth.shape[1]
                for block, maps in attention_maps(diffusion, case, bank, t, which).items():
                    large, marked = upsampled(maps, side), upsampled(median(maps), side)
                    scores.setdefault(block, []).append(torch.stack([auc(large, truth), iou(marked, truth)]))
            for block, parts in scores.items():
                mean_auc, mean_iou = torch.cat(parts, 1).mean(1).tolist()
                yield {"tokens": which, "t": t, "block": block, "auc": mean_auc, "iou": mean_iou}


def latent_truth(masks: np.ndarray, side: int) -> torch.Tensor:
    """Return pixel masks bool [n, h, w] as bool [n, side, side]: cells of which the object fills at least half."""
    shrunk = F.adaptive_avg_pool2d(torch.from_numpy(masks).float()[:, None], side)[:, 0]
    return shrunk >= 0.5
