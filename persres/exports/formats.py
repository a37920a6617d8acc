"""Formats of other tools as plain functions from factors to tensors and header.

In each of them a layer's ΔW = A·B is two factors and, in kohya's, ``alpha``: readers multiply by alpha / rank, so alpha = rank
leaves ΔW as it is. PEFT's format, which is also a residual's, is in :func:`persres.residuals.file.to_peft`.

Sources: kohya-ss/sd-scripts ``networks/lora.py`` (key names, ``self.scale = alpha / self.lora_dim``); diffusers
``TextualInversionLoaderMixin`` (a state dict with one key is one vector a row) and AUTOMATIC1111's ``emb_params``; ComfyUI
``sd1_clip.load_embed`` (``clip_l``, ``clip_g``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from persres.residuals.file import to_peft
from persres.residuals.lora import Delta

TensorsAndHeader = tuple[dict[str, torch.Tensor], dict[str, str]]
_KOHYA = "lora_unet_"
# By the number of text towers; SDXL's are CLIP's ViT-L and OpenCLIP's bigG, in this order.
EMBEDDINGS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}


def kohya_name(path: str) -> str:
    """Returns kohya's name of a layer: ``down_blocks.0.attentions.0.proj_out`` -> ``lora_unet_down_blocks_0_attentions_0_proj_out``."""
    return _KOHYA + path.replace(".", "_")


def to_kohya(layers: Mapping[str, Delta]) -> TensorsAndHeader:
    """Returns tensors and header as kohya's sd-scripts write them and ComfyUI and AUTOMATIC1111 read them, alpha = rank."""
    tensors = {}
    for path, delta in layers.items():
        name = kohya_name(path)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = delta.as_layers()
        tensors[f"{name}.alpha"] = torch.tensor(float(delta.rank))
    ranks = sorted({delta.rank for delta in layers.values()})
    highest = str(ranks[-1])
    return tensors, {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": highest,
        "ss_network_alpha": highest,
        "ss_training_comment": f"persres; ranks {', '.join(map(str, ranks))}, alpha = rank in every layer",
    }


def to_embedding(vectors: list[torch.Tensor]) -> TensorsAndHeader:
    """Returns V* as a Textual-Inversion file, a vector [1, width] for each text tower.

    One tower's is ``emb_params``, which AUTOMATIC1111, ComfyUI (by the file's name) and diffusers (``load_textual_inversion(path,
    token="<v*>")``) read; SDXL's two are ``clip_l`` and ``clip_g``.
    """
    named = zip(EMBEDDINGS[len(vectors)], vectors, strict=True)
    return {key: vector.detach().float().reshape(1, -1).contiguous() for key, vector in named}, {"format": "pt"}


FORMATS: dict[str, Callable[[Mapping[str, Delta]], TensorsAndHeader]] = {"diffusers": to_peft, "kohya": to_kohya}
