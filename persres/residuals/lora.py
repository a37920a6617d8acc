"""Any Stable Diffusion LoRA, read from its file: PEFT's keys and adapter folders, diffusers' older keys, kohya's, ComfyUI's and OneTrainer's;
attention, feed-forward, convolutions, text towers.

What readers silently drop or guess is refused or resolved here: DoRA's magnitudes, alphas next to PEFT's keys, mixed ranks without a
header, PEFT's scale in another file. A scale (alpha / rank) goes into the up factor.

Sources: peft ``LoraConfig`` (rank_pattern, alpha_pattern, rsLoRA) and diffusers ``lora_adapter_metadata``; kohya-ss/sd-scripts
``networks/lora.py`` (``lora_down`` with the layer's kernel, ``lora_up`` 1×1, alpha).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from persres.errors import PersresError
from persres.residuals.adapter_metadata import AdapterConfig, adapter_configs, lora_path
from persres.residuals.header_validation import read_checked
from persres.residuals.lora_keys import ALPHA, TOWERS, UNET, LoraKey, flat, layer_names, parse_key
from persres.untrusted.text import printable, quoted

Tensors = dict[str, torch.Tensor]
Pairs = dict[str, Tensors]  # by layer as the file spells it: down, up, alpha
FACTORS = {"lora_A": "down", "lora_B": "up"}
# Adapters of other kinds: what marks them in a key, and their name.
OTHER_KINDS = {
    "dora_scale": "DoRA's",
    "lora_magnitude_vector": "DoRA's",
    "hada_": "LoHa's",
    "lokr_": "LoKr's",
    "lora_mid": "a LoCon's with a third factor (CP)",
    "oft_": "OFT's",
    "boft_": "BOFT's",
    "a1.weight": "GLoRA's",
    "lora_controlnet": "a ControlNet's",
    "bias": "a trained bias",
}
DIFFERENCES = (".diff", ".diff_b")  # ends of keys that hold a full difference
EMBEDDING = "bundle_emb"  # kohya's and A1111's mark of a Textual Inversion embedding in a LoRA's file
PROJECTION = "text_projection"
MAX_WEIGHT = 1e6  # of ΔW, as a bound from the factors; half precision ends at 65,504


@dataclass(frozen=True)
class Delta:
    """One layer's ΔW = up · down: ``up`` is A [m, r] with every scale in it; ``down`` is B [r, m'], for a convolution [r, m', k, k]."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def matrix(self) -> torch.Tensor:
        """Returns ΔW, float32 [m, m' · k · k]."""
        return self.up.float() @ self.down.float().flatten(1)

    def as_layers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (down, up) with the shapes of a LoRA's two layers: 4-D each for a convolution."""
        ones = (None,) * (self.down.ndim - 2)
        return self.down.contiguous(), self.up[(..., *ones)].contiguous()


@dataclass(frozen=True)
class Lora:
    """A LoRA's deltas by layer path, of the U-Net and of each text tower. ``phrase``: the words that name its subject in prompts."""

    phrase: str
    unet: dict[str, Delta] = field(default_factory=dict)
    towers: tuple[dict[str, Delta], ...] = ()


def read_lora(path: Path | str, phrase: str, unet: nn.Module, towers: list[nn.Module | None]) -> Lora:
    """Returns a file's deltas for this U-Net and these text towers, checked layer by layer; ``path`` may be a folder that PEFT saved.

    Raises PersresError where the file is broken (see :func:`~persres.residuals.header_validation.read_checked`), holds another kind of
    adapter, or a layer or a shape that the model does not have.
    """
    path = lora_path(path)
    tensors, header = read_checked(path)
    parts = _by_part(path, tensors)
    configs = adapter_configs(path, header, tensors)
    models = dict(zip((UNET, *TOWERS), (unet, *towers), strict=False))
    other = next((part for part in parts if models.get(part) is None), None)
    if other is not None:
        raise PersresError(f"{path} has layers of {printable(other, 100)}, {_fix(other, towers)}")
    deltas = {part: _deltas(path, parts[part], models[part], configs.get(part, AdapterConfig())) for part in parts}
    if not any(deltas.values()):
        raise PersresError(f"{path} holds no LoRA layer; give a LoRA's file")
    return Lora(phrase, deltas.get(UNET, {}), tuple(deltas.get(name, {}) for name in TOWERS[: len(towers)]))


def _fix(part: str, towers: list[nn.Module | None]) -> str:
    if part in TOWERS[: len(towers)]:
        return "which this pipeline was loaded without; load it with its text encoders"
    if part in TOWERS and not towers:
        return "which a residual does not have; use the file as a LoRA (generate --subject)"
    return "which this model does not have; load the base that it was trained on"


def _by_part(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Pairs]:
    """Factors and alphas by part of the pipeline and layer, if there is nothing else."""
    parts: dict[str, Pairs] = {}
    for key, value in tensors.items():
        parsed = _checked_key(path, key)
        if parsed.factor != "alpha":
            _check_factor(path, key, value)
        layer = parts.setdefault(parsed.part, {}).setdefault(parsed.layer, {})
        if parsed.factor in layer:
            raise PersresError(f"{path} has layers twice, with and without a prefix ({quoted(key)}); save it with PEFT's or kohya's keys")  # fmt: skip
        layer[parsed.factor] = value
    for key in tensors:
        parsed = parse_key(key)
        if parsed.factor == "alpha" and "up" not in parts[parsed.part][parsed.layer]:
            raise PersresError(f"{path}: {printable(key)} has no up factor; fetch the file again")
    return parts


def _checked_key(path: Path, key: str) -> LoraKey:
    if key.startswith(EMBEDDING):
        raise PersresError(
            f"{path}: {quoted(key)} is a Textual Inversion embedding that is bundled with the LoRA, which persres does not read;"
            f" save the LoRA without its {EMBEDDING} keys, and load the embedding with the pipeline's load_textual_inversion"
        )
    kind = next((name for mark, name in OTHER_KINDS.items() if mark in key), None)
    if key.endswith(DIFFERENCES):
        kind = "a full difference"
    if kind is not None:
        raise PersresError(f"{path}: {quoted(key)} is {kind}, not a plain LoRA's; extract a LoRA from it with the tool that made it")  # fmt: skip
    parsed = parse_key(key)
    if parsed is None:
        raise PersresError(f"{path}: {quoted(key)} is not a key of a known kind of LoRA; save it with PEFT's or kohya's keys")  # fmt: skip
    return parsed


def _check_factor(path: Path, key: str, value: torch.Tensor) -> None:
    if not value.is_floating_point() or value.ndim not in (2, 4) or 0 in value.shape:
        kind = str(value.dtype).removeprefix("torch.")
        raise PersresError(
            f"{path}: {quoted(key)} is {kind} {list(value.shape)}, and a LoRA's factors are matrices or convolutions of floating point;"
            " fetch it again, or save it as float16"
        )


def _alpha(path: Path, key: str, value: torch.Tensor) -> float:
    if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
        raise PersresError(f"{path}: {quoted(key)} is {list(value.shape)}, and an alpha is one number; fetch the file again")  # fmt: skip
    return float(value)  # finite, as all tensors of a file that was read


def _deltas(path: Path, pairs: Pairs, model: nn.Module, config: AdapterConfig) -> dict[str, Delta]:
    names, deltas = layer_names(model), {}
    for spelled, pair in pairs.items():
        layer = names.get(flat(spelled))
        if layer is None:
            raise _missing(path, spelled)
        if layer in deltas:
            raise PersresError(
                f"{path} has layer {layer} twice, by two tools' names; save it with PEFT's or kohya's keys"
            )
        deltas[layer] = _delta(path, layer, _scaled(path, spelled, pair), model, config)
    return deltas


def _missing(path: Path, layer: str) -> PersresError:
    if layer.endswith(PROJECTION):
        return PersresError(
            f"{path} trains the output projection of a text encoder ({PROJECTION}), which this model does not use; save the LoRA"
            f" without its {PROJECTION} keys, or load the base that it was trained on"
        )
    if "resblocks" in layer:
        return PersresError(
            f"{path}: {quoted(layer)} has OpenCLIP's name of a text encoder's layer; save it with kohya's or diffusers' keys"
        )
    return PersresError(f"{path}: this model has no layer {quoted(layer)}; load the base that the LoRA was trained on")


def _scaled(path: Path, layer: str, pair: Tensors) -> Tensors:
    """The two factors, with an alpha that is a tensor of the file multiplied in: up · alpha / rank."""
    alpha = None if "alpha" not in pair else _alpha(path, f"{layer}{ALPHA}", pair["alpha"])
    factors = {name: value for name, value in pair.items() if name != "alpha"}
    if set(factors) != {"up", "down"}:
        raise PersresError(f"{path}: layer {printable(layer)} has only its {next(iter(factors))} factor; fetch the file again")  # fmt: skip
    return factors if alpha is None else factors | {"up": factors["up"].float() * (alpha / factors["up"].shape[1])}


def _delta(path: Path, layer: str, pair: Tensors, model: nn.Module, config: AdapterConfig) -> Delta:
    weight, (up, down) = _weight(path, layer, model), (pair["up"], pair["down"])
    rank, inputs = down.shape[0], tuple(weight.shape[1:])
    # A 1×1 convolution is a matrix; files write it as either.
    fits = up.numel() == weight.shape[0] * rank and up.shape[0] == weight.shape[0]
    if not fits or down.numel() != rank * math.prod(inputs) or (down.ndim == weight.ndim and down.shape[1:] != inputs):
        raise PersresError(
            f"{path}: {layer} has factors {list(up.shape)} and {list(down.shape)}, the model's layer is {list(weight.shape)};"
            " load the base that the LoRA was trained on"
        )
    delta = Delta(up.flatten(1).float() * config.scale(layer, rank), down.float().view(rank, *inputs))
    largest = rank * float(delta.up.abs().max()) * float(delta.down.abs().max())
    if not largest <= MAX_WEIGHT:
        raise PersresError(f"{path}: {layer} with its alpha has weights of up to {largest:.1g}, which would only make noise; fetch it again")  # fmt: skip
    return delta


def _weight(path: Path, layer: str, model: nn.Module) -> torch.Tensor:
    """The weight of a linear layer or a convolution."""
    module = model.get_submodule(layer)
    if module.weight.ndim not in (2, 4) or isinstance(module, nn.Embedding):
        raise PersresError(f"{path}: {layer} is a {type(module).__name__}, which takes no LoRA here; save the LoRA without it")  # fmt: skip
    return module.weight
