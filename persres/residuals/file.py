"""A residual as one safetensors file that diffusers, PEFT and ComfyUI load as a LoRA.

Keys are PEFT's: ``unet.<path>.lora_A.weight`` holds the paper's B ([r, m, 1, 1], or [r, m] for a
linear layer), ``unet.<path>.lora_B.weight`` the paper's A ([m, r, 1, 1]). Mixed ranks load rightly only
with alpha = rank in the file: the header carries ``lora_adapter_metadata`` with rank and alpha
patterns, and ``persres`` with our config and provenance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError
from persres.models.weight_patching import TOKEN
from persres.residuals.bank import ResidualBank, TargetLayer, find_targets
from persres.units.checkpoints import read_learned, write_tensors

FORMAT = "persres-residual-1"


def save_residual(
    path: Path,
    state: dict[str, torch.Tensor],
    targets: list[TargetLayer],
    info: dict[str, Any],
    token: torch.Tensor | None = None,
) -> None:
    """Write one concept's residual. ``info`` (config, provenance) must be JSON. ``token`` is V*'s embedding where it learned
    too (an ablation: such a file is for persres alone, a LoRA loader does not know the key)."""
    tensors = {} if token is None else {TOKEN: token}
    for target in targets:
        up, down = state[f"{target.path}.up"], state[f"{target.path}.down"]
        if target.conv:
            up, down = up[..., None, None], down[..., None, None]
        tensors[f"unet.{target.path}.lora_A.weight"] = down
        tensors[f"unet.{target.path}.lora_B.weight"] = up
    ranks = {target.path: target.rank for target in targets}
    peft = {
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
    lora = {f"unet.{key}": value for key, value in peft.items()}
    write_tensors(
        path,
        tensors,
        {
            "format": "pt",
            "lora_adapter_metadata": json.dumps(lora, sort_keys=True),
            "persres": json.dumps({"format": FORMAT, **info}, sort_keys=True),
        },
    )


def load_residual(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """One concept's factors by layer (``<path>.up`` [m, r], ``<path>.down`` [r, m]) and its info.

    ``token`` is among them where V*'s embedding learned too. Raises PersresError where the file is missing, broken or not
    a residual.
    """
    tensors, info = read_learned(path)
    if info is None or info.get("format") != FORMAT:
        raise PersresError(
            f"{path} is a safetensors file but not a persres residual: its header does not say {FORMAT}; to load any"
            " LoRA say subject=, the words of the prompt that name what it learned"
        )
    parts = {"lora_A": "down", "lora_B": "up"}
    state = {TOKEN: tensors.pop(TOKEN).float()} if TOKEN in tensors else {}
    for key, value in tensors.items():
        layer, part, _ = key.removeprefix("unet.").rsplit(".", 2)
        state[f"{layer}.{parts[part]}"] = value.flatten(1).float()
    return state, info


def load_token(path: Path) -> torch.Tensor | None:
    """V*'s embedding, where it learned too."""
    return load_residual(path)[0].get(TOKEN)


def load_bank(unet: nn.Module, path: Path) -> ResidualBank:
    """The residual as a bank of one concept on the U-Net's device, at the ranks it was trained with.

    Raises PersresError where the file is no residual, or one for another architecture.
    """
    state, info = load_residual(path)
    state.pop(TOKEN, None)
    settings = info["spec"]["settings"]
    targets = find_targets(unet, settings["rank_ratio"], settings["rank"], settings["target"])
    return ResidualBank.from_states(targets, [state]).to(next(unet.parameters()).device)
