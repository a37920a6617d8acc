"""Three file formats as plain functions from factors to tensors, and back.

ΔW = A·B of a layer is in every one two factors and, in kohya's, ``alpha``: readers multiply by alpha / rank, so alpha = rank
leaves ΔW as it is. PEFT's files say the same in their header, by layer: ranks are mixed (16, 32, 64 on Stable Diffusion v1), and
diffusers up to 0.39 scales such a file wrongly where the header is missing.

Sources: peft ``LoraConfig`` (rank_pattern, alpha_pattern) and diffusers ``lora_adapter_metadata``; kohya-ss/sd-scripts
``networks/lora.py`` (key names, ``self.scale = alpha / self.lora_dim``); diffusers ``TextualInversionLoaderMixin`` (a state dict
with one key is one vector a row) and AUTOMATIC1111's ``emb_params``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from persres.errors import PersresError

PEFT, KOHYA = "diffusers", "kohya"
FORMATS = (PEFT, KOHYA)
_KOHYA = "lora_unet_"


@dataclass(frozen=True)
class Factors:
    """One layer's: ``up`` is the paper's A [m, r], ``down`` its B [r, m']; ``conv`` where the layer is a 1×1 convolution."""

    up: torch.Tensor
    down: torch.Tensor
    conv: bool

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def shaped(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down, up) as a LoRA layer holds them: with two more axes of 1 for a convolution."""
        ends = (..., None, None) if self.conv else (...,)
        return self.down[ends].contiguous(), self.up[ends].contiguous()


def to_peft(layers: Mapping[str, Factors]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header for diffusers' ``load_lora_weights``: ``unet.<path>.lora_A.weight`` is B, ``lora_B`` is A."""
    tensors = {}
    for path, factors in layers.items():
        tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = factors.shaped()
    ranks = {path: factors.rank for path, factors in layers.items()}
    most = max(ranks.values())
    config = {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
    header = {f"unet.{key}": value for key, value in config.items()}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(header, sort_keys=True)}


def kohya_name(path: str) -> str:
    """``down_blocks.0.attentions.0.proj_out`` -> ``lora_unet_down_blocks_0_attentions_0_proj_out``."""
    return _KOHYA + path.replace(".", "_")


def to_kohya(layers: Mapping[str, Factors]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header as kohya's sd-scripts write them and ComfyUI and AUTOMATIC1111 read them, alpha = rank."""
    tensors = {}
    for path, factors in layers.items():
        down, up = factors.shaped()
        tensors[f"{kohya_name(path)}.lora_down.weight"] = down
        tensors[f"{kohya_name(path)}.lora_up.weight"] = up
        tensors[f"{kohya_name(path)}.alpha"] = torch.tensor(float(factors.rank))
    ranks = sorted({factors.rank for factors in layers.values()})
    most = str(ranks[-1])
    return tensors, {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": most,
        "ss_network_alpha": most,
        "ss_training_comment": f"persres; ranks {', '.join(map(str, ranks))}, alpha = rank in every layer",
    }


def from_lora(tensors: Mapping[str, torch.Tensor], paths: list[str], header: Mapping[str, str]) -> dict[str, Factors]:
    """Factors by layer from a PEFT or a kohya file; ``paths`` are the model's layers, since kohya's names lose their dots.

    A scale other than 1 (alpha / rank, by layer) goes into A. Raises PersresError naming the first key that is of no
    known layer, and for a layer with one factor only.
    """
    kohya = any(key.startswith(_KOHYA) for key in tensors)
    pairs, alphas = (_kohya_pairs if kohya else _peft_pairs)(tensors, paths)
    if not kohya:
        alphas = _peft_alphas(header, {path: pair["down"].shape[0] for path, pair in pairs.items() if "down" in pair})
    layers = {}
    for path, pair in pairs.items():
        if set(pair) != {"up", "down"}:
            raise PersresError(f"layer {path} has only its {next(iter(pair))} factor; the file is not whole")
        up, down = pair["up"].float(), pair["down"].float()
        scale = alphas.get(path, down.shape[0]) / down.shape[0]
        layers[path] = Factors(up.flatten(1) * scale, down.flatten(1), up.ndim == 4)
    return layers


Pairs = dict[str, dict[str, torch.Tensor]]


def _kohya_pairs(tensors: Mapping[str, torch.Tensor], paths: list[str]) -> tuple[Pairs, dict[str, float]]:
    known = {kohya_name(path): path for path in paths}
    pairs: Pairs = {}
    alphas: dict[str, float] = {}
    for key, value in tensors.items():
        name, _, part = key.partition(".")
        if name not in known:
            raise _unknown(key)
        if part == "alpha":
            alphas[known[name]] = float(value)
        elif part in ("lora_up.weight", "lora_down.weight"):
            pairs.setdefault(known[name], {})[part.split(".")[0].removeprefix("lora_")] = value
        else:
            raise _unknown(key)
    return pairs, alphas


def _peft_pairs(tensors: Mapping[str, torch.Tensor], paths: list[str]) -> tuple[Pairs, dict[str, float]]:
    parts, known = {"lora_A": "down", "lora_B": "up"}, set(paths)
    pairs: Pairs = {}
    for key, value in tensors.items():
        path, _, part = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        if path not in known or part not in parts:
            raise _unknown(key)
        pairs.setdefault(path, {})[parts[part]] = value
    return pairs, {}


def _peft_alphas(header: Mapping[str, str], ranks: dict[str, int]) -> dict[str, float]:
    """By layer, from ``lora_adapter_metadata``; without one alpha = rank."""
    config = json.loads(header.get("lora_adapter_metadata", "{}"))
    pattern = config.get("unet.alpha_pattern", {})
    return {path: float(pattern.get(path, config.get("unet.lora_alpha", rank))) for path, rank in ranks.items()}


def _unknown(key: str) -> PersresError:
    return PersresError(f"key {key!r} is of no layer that takes a residual here; the file is of another model or kind")


def to_embedding(vector: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """V* as a Textual-Inversion file: one key ``emb_params`` [1, width], which AUTOMATIC1111, ComfyUI (by the file's name) and
    diffusers (``load_textual_inversion(path, token="<v*>")``) read."""
    return {"emb_params": vector.detach().float().reshape(1, -1).contiguous()}, {"format": "pt"}
