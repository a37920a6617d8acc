"""Any Stable Diffusion LoRA, read from its file: PEFT's keys, diffusers' older ones, kohya's (with diffusers' or the original
model's block names); attention, feed-forward, convolutions, text towers.

The renaming is diffusers' own (``lora_state_dict`` and ``state_dict_utils``); what it drops or guesses in silence is refused or settled
here: DoRA's magnitudes, alphas beside PEFT's keys, ranks that differ without a header. A scale (alpha / rank) goes into the up factor.

Sources: peft ``LoraConfig`` (rank_pattern, alpha_pattern, rsLoRA) and diffusers ``lora_adapter_metadata``; kohya-ss/sd-scripts
``networks/lora.py`` (``lora_down`` with the layer's kernel, ``lora_up`` 1×1, alpha).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError
from persres.units.checkpoints import read_checked

TOWERS = ("text_encoder", "text_encoder_2")
PARTS = {"lora_A": "down", "lora_B": "up"}
# What is in such a file instead of, or beside, two factors: its mark in a key, and its name.
OTHERS = {
    "dora_scale": "DoRA's",
    "lora_magnitude_vector": "DoRA's",
    "hada_": "LoHa's",
    "lokr_": "LoKr's",
    "lora_mid": "a LoCon's with a third factor (CP)",
    "oft_": "OFT's",
    "boft_": "BOFT's",
    "a1.weight": "GLoRA's",
    ".diff": "a full difference",
    "lora_controlnet": "a ControlNet's",
    "bias": "a trained bias",
}


@dataclass(frozen=True)
class Delta:
    """One layer's ΔW = up · down: ``up`` [m, r] with every scale in it; ``down`` [r, m'], of a convolution [r, m', k, k]."""

    up: torch.Tensor
    down: torch.Tensor

    def matrix(self) -> torch.Tensor:
        """ΔW, float32 [m, m' · k · k]."""
        return self.up.float() @ self.down.float().flatten(1)


@dataclass(frozen=True)
class Lora:
    """A LoRA by the layers of a model: the U-Net's, and those of each text tower. ``phrase``: the words that name its subject in
    prompts."""

    phrase: str
    unet: dict[str, Delta] = field(default_factory=dict)
    towers: tuple[dict[str, Delta], ...] = ()


def read_lora(path: Path, phrase: str, unet: nn.Module, towers: list[nn.Module]) -> Lora:
    """A file's deltas for this U-Net and these text towers, checked layer by layer.

    Raises PersresError where the file is broken (as :func:`persres.units.checkpoints.read_checked`), holds another kind of adapter, or a
    layer or a shape that the model has not.
    """
    tensors, header = read_checked(path)
    by_part = _by_part(path, _scaled(path, _plain(path, tensors)), unet)
    said = _metadata(path, header)
    found = _deltas(path, by_part.get("unet", {}), unet, _of(said, "unet"))
    texts = []
    for name, tower in zip(TOWERS, towers, strict=False):
        texts.append(_deltas(path, by_part.get(name, {}), tower, _of(said, name)))
    beyond = [name for name in by_part if name not in ("unet", *TOWERS[: len(towers)])]
    if beyond:
        raise PersresError(f"{path}: the file has layers of {beyond[0]}, which this model has not; load the base that it was trained on")  # fmt: skip
    if not found and not any(texts):
        raise PersresError(f"{path} holds no LoRA layer; is it one?")
    return Lora(phrase, found, tuple(texts))


def _plain(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, if it is two factors a layer and nothing else."""
    for key in tensors:
        kind = next((name for mark, name in OTHERS.items() if mark in key), None)
        if kind is not None:
            raise PersresError(f"{path}: {key!r} is {kind}, not a plain LoRA's; have its tool extract a LoRA from it")
    return {key.removeprefix("base_model.model."): value for key, value in tensors.items()}


def _scaled(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Alphas that stand beside the factors, put into them: up · alpha / rank."""
    alphas = {key.removesuffix(".alpha"): float(v) for key, v in tensors.items() if key.endswith(".alpha") and v.numel() == 1}  # fmt: skip
    kept = {key: value for key, value in tensors.items() if key.removesuffix(".alpha") not in alphas}
    for layer, alpha in alphas.items():
        ups = [f"{layer}{up}.weight" for up in (".lora_up", ".lora_B", ".lora.up", "_lora.up") if f"{layer}{up}.weight" in kept]  # fmt: skip
        if not ups:
            raise PersresError(f"{path}: {layer}.alpha has no up factor beside it; the file is not whole")
        kept[ups[0]] = kept[ups[0]].float() * (alpha / kept[ups[0]].shape[1])
    return kept


def _by_part(path: Path, tensors: dict[str, torch.Tensor], unet: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """``<layer>.lora_A.weight`` and ``lora_B`` by part of the pipeline, renamed by diffusers' own converters."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    try:
        named, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors, unet_config=unet.config)
    except (ValueError, KeyError, IndexError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:160]
        raise PersresError(f"{path}: diffusers can't read its keys ({reason}); is it a LoRA of Stable Diffusion?") from error  # fmt: skip
    if not any(key.startswith(("unet.", *(f"{tower}." for tower in TOWERS))) for key in named):
        named = {f"unet.{key}": value for key, value in named.items()}  # as files of a U-Net alone once had them
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in named.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = value
    return {part: convert_unet_state_dict_to_peft(found) if part == "unet" else _text_keys(found) for part, found in parts.items()}  # fmt: skip


def _text_keys(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from diffusers.utils import convert_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    for spelling in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):  # what is in neither is left as it is
        found = convert_state_dict_to_peft(found, spelling)
    return found


def _metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(header.get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError) as error:
        raise PersresError(f"{path}: its lora_adapter_metadata is not JSON ({error}); fetch or save it again") from error  # fmt: skip


def _of(said: dict[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in said.items() if key.startswith(f"{part}.")}


def _scale(said: dict[str, Any], layer: str, rank: int) -> float:
    """PEFT's scaling of a layer from the file's header; 1 where it says nothing, as diffusers takes it."""
    if "lora_alpha" not in said:
        return 1.0
    pattern = said.get("alpha_pattern") or {}
    known = [v for k, v in pattern.items() if re.fullmatch(rf"(.*\.)?({k.removeprefix('^')})", layer)]
    alpha = float(known[0] if known else said["lora_alpha"])
    return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _deltas(path: Path, tensors: dict[str, torch.Tensor], model: nn.Module, said: dict[str, Any]) -> dict[str, Delta]:
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        layer, _, part = key.removesuffix(".weight").rpartition(".")
        if part not in PARTS or not key.endswith(".weight"):
            raise PersresError(f"{path}: {key!r} is of no kind of LoRA that is known here; save it with PEFT's or kohya's keys")  # fmt: skip
        pairs.setdefault(_known(model, layer), {})[PARTS[part]] = value
    found = {}
    for layer, pair in pairs.items():
        if set(pair) != {"up", "down"}:
            raise PersresError(f"{path}: layer {layer} has only its {next(iter(pair))} factor; the file is not whole")
        found[layer] = _fitted(path, layer, pair["up"], pair["down"], model, said)
    return found


def _known(model: nn.Module, layer: str) -> str:
    """The layer's name in this model: newer transformers have the text tower's layers one floor up."""
    return layer if hasattr(model, "text_model") else layer.removeprefix("text_model.")


def _fitted(
    path: Path, layer: str, up: torch.Tensor, down: torch.Tensor, model: nn.Module, said: dict[str, Any]
) -> Delta:
    try:
        weight = model.get_submodule(layer).weight
    except AttributeError as error:
        raise PersresError(f"{path}: this model has no layer {layer!r}; load the base that the LoRA was trained on") from error  # fmt: skip
    rank, wanted = down.shape[0], (*weight.shape[1:],)
    # A 1×1 convolution is a matrix; files write it as either.
    fits = up.numel() == weight.shape[0] * rank and up.shape[0] == weight.shape[0]
    if not fits or down.numel() != rank * math.prod(wanted) or (down.ndim == weight.ndim and down.shape[1:] != wanted):
        raise PersresError(
            f"{path}: {layer} has factors {list(up.shape)} and {list(down.shape)}, which do not make the model's {list(weight.shape)};"
            " load the base that the LoRA was trained on"
        )
    return Delta(up.flatten(1).float() * _scale(said, layer, rank), down.float().view(rank, *wanted))
