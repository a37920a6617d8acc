"""The file that a method's training leaves: safetensors with a ``persres`` header. Every such file is read and written here.

A residual's file is also a LoRA that diffusers, PEFT and ComfyUI load: ``unet.<path>.lora_A.weight`` holds the paper's B ([r, m', 1, 1], or
[r, m'] for a linear layer), ``unet.<path>.lora_B.weight`` the paper's A. Mixed ranks load at the right scale only with alpha = rank in
the file, so the header carries PEFT's rank and alpha patterns as ``lora_adapter_metadata``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError
from persres.models.weight_patching import TOKEN
from persres.residuals.bank import ResidualBank
from persres.residuals.header import ResidualHeader, read_info
from persres.residuals.header_validation import check_finite, check_floating, read_checked
from persres.residuals.lora import FACTORS, Delta
from persres.units.checkpoints import write_tensors
from persres.untrusted.text import printable, quoted

FORMAT = "persres-residual-1"
_KEY = re.compile(r"(?:unet\.)?(.+)\.(lora_[AB])\.weight")


@dataclass(frozen=True)
class ResidualFile:
    """A residual as read from its file: ``layers`` by path; ``token`` is V*'s embedding [width] where it was trained too."""

    header: ResidualHeader
    layers: dict[str, Delta]
    token: torch.Tensor | None = None

    def bank(self, unet: nn.Module) -> ResidualBank:
        """Returns the layers as a bank on the U-Net's device. Raises PersresError where the U-Net has other layers."""
        return ResidualBank.from_deltas(unet, self.layers, self.header.settings.target)


def save_residual(
    path: Path | str, layers: Mapping[str, Delta], info: dict[str, Any], token: torch.Tensor | None = None
) -> None:
    """Writes one concept's residual. ``info`` (spec, provenance) must be JSON.

    ``token`` is V*'s embedding where it was trained too. LoRA loaders do not know its key, so only persres reads such a file.
    """
    tensors, header = to_peft(layers)
    write_learned(Path(path), FORMAT, tensors if token is None else {TOKEN: token} | tensors, info, header)


def load_residual(path: Path | str) -> ResidualFile:
    """Returns a residual's header, its factors in float32 and V*'s embedding, all validated.

    Raises PersresError where the file is missing, broken or not a residual, and naming the first tensor that no residual has.
    """
    path = Path(path)
    tensors, info = read_learned(path)
    header = ResidualHeader.parse(path, info)
    token = tensors.pop(TOKEN, None)
    check_floating(path, tensors if token is None else {TOKEN: token} | tensors)
    if token is not None and token.ndim != 1:
        raise PersresError(
            f"{path}: {TOKEN!r} {list(token.shape)} is no embedding of one token; fetch or train it again"
        )
    return ResidualFile(header, _from_peft(path, tensors), None if token is None else token.float())


def load_bank(unet: nn.Module, path: Path | str) -> ResidualBank:
    """Returns the residual as a bank of one concept on the U-Net's device, at the ranks of the file.

    Raises PersresError where the file is not a residual, or one for another architecture.
    """
    return load_residual(path).bank(unet)


def write_learned(
    path: Path,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    info: dict[str, Any],
    header: Mapping[str, str] | None = None,
) -> None:
    """Writes any method's tensors. ``kind`` names the format in the ``persres`` entry; ``header`` are entries next to it.

    Raises PersresError for tensors with NaN or infinity, which :func:`read_learned` would refuse.
    """
    check_finite(path, dict(tensors))
    entry = json.dumps({"format": kind, **info}, sort_keys=True)
    write_tensors(path, dict(tensors), {"format": "pt", **(header or {}), "persres": entry})


def read_learned(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Returns all tensors that a method saved and its ``persres`` entry, None where there is none.

    Raises PersresError as :func:`~persres.residuals.header_validation.read_checked` does, and where the entry is not a JSON object.
    """
    tensors, metadata = read_checked(path)
    return tensors, read_info(path, metadata)


def to_peft(layers: Mapping[str, Delta]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns tensors and header entries for diffusers' ``load_lora_weights``."""
    tensors = {}
    for path, delta in layers.items():
        tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = delta.as_layers()
    ranks = {path: delta.rank for path, delta in layers.items()}
    highest = max(ranks.values())
    config = {
        "r": highest,
        "lora_alpha": highest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
    entries = {f"unet.{key}": value for key, value in config.items()}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(entries, sort_keys=True)}


def _from_peft(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise PersresError(
                f"{path}: {quoted(key)} {list(value.shape)} is not a factor of a residual; fetch or train it again"
            )
        pair, factor = pairs.setdefault(match[1], {}), FACTORS[match[2]]
        if factor in pair:
            raise PersresError(f"{path}: layer {printable(match[1])} has its {factor} factor twice; fetch it again")
        pair[factor] = value
    if not pairs:
        raise PersresError(f"{path} holds no factors, so it is not a residual; fetch or train it again")
    return {layer: _delta(path, layer, pair) for layer, pair in pairs.items()}


def _delta(path: Path, layer: str, pair: dict[str, torch.Tensor]) -> Delta:
    if set(pair) != {"up", "down"}:
        raise PersresError(
            f"{path}: layer {printable(layer)} has only its {next(iter(pair))} factor; fetch or train it again"
        )
    up, down = pair["up"], pair["down"]
    plain = all(v.ndim == 2 or (v.ndim == 4 and v.shape[2:] == (1, 1)) for v in (up, down))
    if not plain or 0 in (*up.shape, *down.shape) or up.shape[1] != down.shape[0] or up.ndim != down.ndim:
        raise PersresError(
            f"{path}: layer {printable(layer)} has factors {list(up.shape)} and {list(down.shape)}, which make no matrix; fetch or train it again"
        )
    return Delta(up.float().flatten(1), down.float())
