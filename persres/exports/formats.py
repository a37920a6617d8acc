"""File formats as plain functions from factors to tensors, and from a residual's own tensors to factors.

ΔW = A·B of a layer is in every one two factors and, in kohya's, ``alpha``: readers multiply by alpha / rank, so alpha = rank
leaves ΔW as it is. PEFT's files say the same in their header, by layer: ranks are mixed (16, 32, 64 on Stable Diffusion v1), and
diffusers up to 0.39 scales such a file wrongly where the header is missing.

Sources: peft ``LoraConfig`` (rank_pattern, alpha_pattern) and diffusers ``lora_adapter_metadata``; kohya-ss/sd-scripts
``networks/lora.py`` (key names, ``self.scale = alpha / self.lora_dim``); diffusers ``TextualInversionLoaderMixin`` (a state dict
with one key is one vector a row) and AUTOMATIC1111's ``emb_params``; ComfyUI ``sd1_clip.load_embed`` (``clip_l``, ``clip_g``).
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
# By the number of text towers; SDXL's are CLIP's ViT-L and OpenCLIP's bigG, in this order.
EMBEDDINGS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}


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


def from_peft(tensors: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    """A residual's factors by layer. Raises PersresError naming the first key that is no factor of a U-Net's layer, for a layer with one
    factor only or with two that don't fit, and where there is none."""
    parts, pairs = {"lora_A": "down", "lora_B": "up"}, {}
    for key, value in tensors.items():
        path, _, part = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        if part not in parts or not path:
            raise PersresError(f"key {key!r} is no factor of a residual; the file is of another kind")
        pairs.setdefault(path, {})[parts[part]] = value
    if not pairs:
        raise PersresError("the file holds no layer's factors; it is no residual")
    for path, pair in pairs.items():
        _check_pair(path, pair)
    return {
        path: Factors(pair["up"].float().flatten(1), pair["down"].float().flatten(1), pair["up"].ndim == 4)
        for path, pair in pairs.items()
    }


def _check_pair(path: str, pair: dict[str, torch.Tensor]) -> None:
    if set(pair) != {"up", "down"}:
        raise PersresError(f"layer {path} has only its {next(iter(pair))} factor; the file is not whole")
    up, down = (pair[part].shape for part in ("up", "down"))
    plain = all(len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)) for shape in (up, down))
    if not plain or 0 in up or up[1] != down[0] or len(up) != len(down):
        raise PersresError(
            f"layer {path} has factors {list(up)} and {list(down)}, which make no matrix; the file is not whole, or of another kind"
        )


def to_embedding(vectors: list[torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """V* as a Textual-Inversion file, a vector [1, width] for each text tower: ``emb_params`` of one, which AUTOMATIC1111, ComfyUI (by
    the file's name) and diffusers (``load_textual_inversion(path, token="<v*>")``) read; ``clip_l`` and ``clip_g`` of SDXL's two."""
    named = zip(EMBEDDINGS[len(vectors)], vectors, strict=True)
    return {key: vector.detach().float().reshape(1, -1).contiguous() for key, vector in named}, {"format": "pt"}
