"""Any Stable Diffusion LoRA, read from its file: PEFT's keys, older diffusers keys, kohya's (with diffusers' or the original model's
block names); attention, feed-forward, convolutions, text towers.

diffusers itself renames the keys (``lora_state_dict`` and ``state_dict_utils``). What it silently drops or guesses is refused or resolved
here: DoRA's magnitudes, alphas next to PEFT's keys, mixed ranks without a header. A scale (alpha / rank) goes into the up factor.

Sources: peft ``LoraConfig`` (rank_pattern, alpha_pattern, rsLoRA) and diffusers ``lora_adapter_metadata``; kohya-ss/sd-scripts
``networks/lora.py`` (``lora_down`` with the layer's kernel, ``lora_up`` 1×1, alpha).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from persres.errors import PersresError
from persres.residuals.adapter_metadata import AdapterConfig, read_adapter_metadata
from persres.residuals.header_validation import read_checked
from persres.untrusted.text import printable, quoted

Tensors = dict[str, torch.Tensor]
TOWERS = ("text_encoder", "text_encoder_2")
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
    ".diff": "a full difference",
    "lora_controlnet": "a ControlNet's",
    "bias": "a trained bias",
}
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


def read_lora(path: Path, phrase: str, unet: nn.Module, towers: list[nn.Module]) -> Lora:
    """Returns a file's deltas for this U-Net and these text towers, checked layer by layer.

    Raises PersresError where the file is broken (see :func:`~persres.residuals.header_validation.read_checked`), holds another kind of
    adapter, or a layer or a shape that the model does not have.
    """
    tensors, header = read_checked(path)
    metadata = read_adapter_metadata(path, header)
    parts = _by_part(path, _scaled(path, _plain(path, tensors)), unet)
    unet_deltas = _deltas(path, parts.pop("unet", {}), unet, metadata.get("unet", AdapterConfig()))
    tower_deltas = []
    for name, tower in zip(TOWERS, towers, strict=False):
        tower_deltas.append(_deltas(path, parts.pop(name, {}), tower, metadata.get(name, AdapterConfig())))
    if parts:
        fix = "this model does not have; load the base that it was trained on" if towers else "a residual does not have; use the file as a LoRA (generate --subject)"  # fmt: skip
        raise PersresError(f"{path} has layers of {printable(next(iter(parts)), 100)}, which {fix}")
    if not unet_deltas and not any(tower_deltas):
        raise PersresError(f"{path} holds no LoRA layer; give a LoRA's file")
    return Lora(phrase, unet_deltas, tuple(tower_deltas))


def _plain(path: Path, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors, if they are two factors a layer and nothing else."""
    for key, value in tensors.items():
        kind = next((name for mark, name in OTHER_KINDS.items() if mark in key), None)
        if key.startswith(EMBEDDING):
            raise PersresError(
                f"{path}: {quoted(key)} is a Textual Inversion embedding that is bundled with the LoRA, which persres does not read;"
                f" save the LoRA without its {EMBEDDING} keys, and load the embedding with the pipeline's load_textual_inversion"
            )
        if kind is not None:
            raise PersresError(f"{path}: {quoted(key)} is {kind}, not a plain LoRA's; extract a LoRA from it with the tool that made it")  # fmt: skip
        if not key.endswith(".alpha"):
            _check_factor(path, key, value)
    plain = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        raise PersresError(f"{path} has layers twice, with and without PEFT's prefix; save it with PEFT's or kohya's keys")  # fmt: skip
    return plain


def _check_factor(path: Path, key: str, value: torch.Tensor) -> None:
    if not value.is_floating_point() or value.ndim not in (2, 4) or 0 in value.shape:
        kind = str(value.dtype).removeprefix("torch.")
        raise PersresError(
            f"{path}: {quoted(key)} is {kind} {list(value.shape)}, and a LoRA's factors are matrices or convolutions of floating point;"
            " fetch it again, or save it as float16"
        )


def _scaled(path: Path, tensors: Tensors) -> Tensors:
    """Multiplies alphas that are tensors of the file into the factors: up · alpha / rank."""
    alphas = {key.removesuffix(".alpha"): _alpha(path, key, value) for key, value in tensors.items() if key.endswith(".alpha")}  # fmt: skip
    factors = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    for layer, alpha in alphas.items():
        names = (f"{layer}{up}.weight" for up in (".lora_up", ".lora_B", ".lora.up", "_lora.up"))
        name = next((name for name in names if name in factors), None)
        if name is None:
            raise PersresError(f"{path}: {printable(layer)}.alpha has no up factor; fetch the file again")
        factors[name] = factors[name].float() * (alpha / factors[name].shape[1])
    return factors


def _alpha(path: Path, key: str, value: torch.Tensor) -> float:
    if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
        raise PersresError(f"{path}: {quoted(key)} is {list(value.shape)}, and an alpha is one number; fetch the file again")  # fmt: skip
    return float(value)  # finite, as all tensors of a file that was read


def _by_part(path: Path, tensors: Tensors, unet: nn.Module) -> dict[str, Tensors]:
    """``<layer>.lora_A.weight`` and ``lora_B`` by part of the pipeline, renamed by diffusers' converters."""
    try:
        parts = _renamed(tensors, unet)
    except Exception as error:  # whatever a converter raises is the file's fault
        reason = re.sub(r"\s+", " ", str(error))[:160]
        raise PersresError(f"{path}: diffusers can't read its keys ({reason}); give a LoRA of Stable Diffusion") from error  # fmt: skip
    dropped = len(tensors) - sum(map(len, parts.values()))
    if dropped:
        raise PersresError(f"{path}: diffusers drops {dropped} of its keys, so it mixes several tools' names; save it with PEFT's or kohya's keys")  # fmt: skip
    return parts


def _renamed(tensors: Tensors, unet: nn.Module) -> dict[str, Tensors]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    named, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=unet.config)
    if not any(key.startswith(("unet.", *(f"{tower}." for tower in TOWERS))) for key in named):
        named = {f"unet.{key}": value for key, value in named.items()}  # old files of a U-Net alone
    parts: dict[str, Tensors] = {}
    for key, value in named.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = value
    return {part: convert_unet_state_dict_to_peft(keys) if part == "unet" else _text_keys(keys) for part, keys in parts.items()}  # fmt: skip


def _text_keys(tensors: Tensors) -> Tensors:
    from diffusers.utils import convert_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    for spelling in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):  # keys in neither stay as they are
        tensors = convert_state_dict_to_peft(tensors, spelling)
    return tensors


def _deltas(path: Path, tensors: Tensors, model: nn.Module, config: AdapterConfig) -> dict[str, Delta]:
    pairs: dict[str, Tensors] = {}
    for key, value in tensors.items():
        layer, _, factor = key.removesuffix(".weight").rpartition(".")
        if factor not in FACTORS or not key.endswith(".weight"):
            raise PersresError(f"{path}: {quoted(key)} is not a key of a known kind of LoRA; save it with PEFT's or kohya's keys")  # fmt: skip
        pairs.setdefault(_layer_name(model, layer), {})[FACTORS[factor]] = value
    for layer, pair in pairs.items():
        if set(pair) != {"up", "down"}:
            raise PersresError(f"{path}: layer {printable(layer)} has only its {next(iter(pair))} factor; fetch the file again")  # fmt: skip
    return {layer: _delta(path, layer, pair, model, config) for layer, pair in pairs.items()}


def _layer_name(model: nn.Module, layer: str) -> str:
    """The layer's path in this model: newer transformers have no ``text_model`` in the text tower's paths."""
    return layer if hasattr(model, "text_model") else layer.removeprefix("text_model.")


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
    try:
        module = model.get_submodule(layer)
        weight = module.weight
    except AttributeError as error:
        if layer.endswith(PROJECTION):
            raise PersresError(
                f"{path} trains the output projection of a text encoder ({PROJECTION}), which this model does not use; save the LoRA"
                f" without its {PROJECTION} keys, or load the base that it was trained on"
            ) from error
        raise PersresError(f"{path}: this model has no layer {quoted(layer)}; load the base that the LoRA was trained on") from error  # fmt: skip
    if weight.ndim not in (2, 4) or isinstance(module, nn.Embedding):
        raise PersresError(f"{path}: {layer} is a {type(module).__name__}, which takes no LoRA here; save the LoRA without it")  # fmt: skip
    return weight
