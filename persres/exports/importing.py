"""``persres import``: another tool's LoRA of output projections as a residual."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from persres.config.schema import Base
from persres.datasets.layout import check_name
from persres.errors import PersresError
from persres.models.diffusion import load_diffusion
from persres.models.loading import model_identity
from persres.residuals.bank import TargetLayer, find_targets
from persres.residuals.file import save_residual
from persres.residuals.lora import Delta, read_lora
from persres.units.files import digest_file

OURS = {
    "rank_ratio": 0.05,
    "rank": None,
    "target": "proj_out",
    "name_class": True,
}  # how ranks are told, and what V* stands before


def import_lora(path: Path, unet: nn.Module, place: str = "proj_out") -> dict[str, torch.Tensor]:
    """Another tool's LoRA of output projections as a residual's state: ``<path>.up`` [m, r], ``<path>.down`` [r, m]. Every scale is in
    A, so alpha is 1 per rank. Raises PersresError as :func:`persres.residuals.lora.read_lora` does, and naming the first layer that takes no
    residual."""
    known = {target.path for target in find_targets(unet, place=place)}
    layers = read_lora(path, "", unet, []).unet
    odd = sorted(set(layers) - known)
    if odd:
        raise PersresError(
            f"{path}: {odd[0]} is no layer that takes a residual; draw with the file as it is (generate --subject, load_residual with"
            " subject=)"
        )
    return {f"{p}.{part}": value for p, delta in layers.items() for part, value in _factors(delta).items()}


def _factors(delta: Delta) -> dict[str, torch.Tensor]:
    return {"up": delta.up, "down": delta.down.flatten(1)}


def import_residual(
    lora: Path,
    model: str,
    macro_class: str,
    name: str | None = None,
    rare_token: str = "sks",
    resolution: int | None = None,
    out: Path | None = None,
) -> Path:
    """Write the LoRA as ``<name>.safetensors`` below ``out``, a residual for ``model``; returns the file.

    V* will read as ``rare_token``, the word that the LoRA was trained under. Raises PersresError where the file holds other layers, the model
    can't be had, or the file that would be written is the LoRA itself.
    """
    name = check_name(name or lora.stem)
    target = (out or lora.parent) / f"{name}.safetensors"
    if target.resolve() == lora.resolve():
        raise PersresError(f"{target} is the LoRA itself; say another --name or --out")
    if not macro_class.strip():
        raise PersresError("--class is empty; say what the thing is, e.g. --class dog")
    base = Base(model=model, rare_token=rare_token)
    diffusion = load_diffusion(base, "cpu")
    base = _sized(base, resolution or diffusion.unet.config.sample_size * diffusion.latent_shape[1])
    targets, settings, state = _fitted(import_lora(lora, diffusion.unet), diffusion.unet)
    spec = {
        "base": base.model_dump(),
        "model": model_identity(model),
        "concept": name,
        "macro_class": macro_class.strip(),
        "settings": settings,
        "imported": {"file": lora.name, "sha256": digest_file(lora)},
    }
    save_residual(target, state, targets, {"spec": spec})
    return target


def _sized(base: Base, pixels: int) -> Base:
    try:
        return Base(**base.model_dump() | {"resolution": pixels})
    except ValidationError as error:
        raise PersresError(f"resolution {pixels}: {error.errors()[0]['msg']}; say --resolution, e.g. 512") from error


def _fitted(
    state: dict[str, torch.Tensor], unet: nn.Module
) -> tuple[list[TargetLayer], dict[str, object], dict[str, torch.Tensor]]:
    """The state on all of the model's layers, at ranks that settings can tell: ours where they are these, else the highest in every
    layer. Rows and columns of zeros leave ΔW as it is."""
    ranks = {key.removesuffix(".down"): value.shape[0] for key, value in state.items() if key.endswith(".down")}
    targets, settings = find_targets(unet, OURS["rank_ratio"]), dict(OURS)
    if ranks != {target.path: target.rank for target in targets}:
        settings["rank"] = max(ranks.values())
        targets = find_targets(unet, fixed_rank=settings["rank"])
    too_wide = [t.path for t in targets if ranks.get(t.path, 0) > t.rank]
    if too_wide:
        raise PersresError(
            f"layer {too_wide[0]} has rank {ranks[too_wide[0]]}, more than the layer is wide; extract it at a lower rank"
        )
    padded = {}
    for target in targets:
        up, down = torch.zeros(target.width, target.rank), torch.zeros(target.rank, target.width_in)
        if target.path in ranks:
            up[:, : ranks[target.path]], down[: ranks[target.path]] = (
                state[f"{target.path}.up"],
                state[f"{target.path}.down"],
            )
        padded |= {f"{target.path}.up": up, f"{target.path}.down": down}
    return targets, settings, padded
