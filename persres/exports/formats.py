"""Formats of other tools as plain functions from factors to tensors and header.

In each of them a layer's ΔW = A·B is two factors and, in kohya's, ``alpha``: readers multiply by alpha / rank, so alpha = rank
leaves ΔW as it is. PEFT's format, which is also a residual's, is in :func:`persres.residuals.file.to_peft`.

Sources: kohya-ss/sd-scripts ``networks/lora.py`` (key names, ``self.scale = alpha / self.lora_dim``); diffusers
``TextualInversionLoaderMixin`` (a state dict with one key is one vector a row) and AUTOMATIC1111's ``emb_params``; ComfyUI
``sd1_clip.load_embed`` (``clip_l``, ``clip_g``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import torch

from persres.residuals.file import to_peft
from persres.residuals.ldm_names import ldm_name
from persres.residuals.lora import Delta

TensorsAndHeader = tuple[dict[str, torch.Tensor], dict[str, str]]
_KOHYA = "lora_unet_"
# By the number of text towers; SDXL's are CLIP's ViT-L and OpenCLIP's bigG, in this order.
EMBEDDINGS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}


class Layout(Enum):
    """Which of a U-Net's blocks have attention: as in Stable Diffusion 1.x and 2.x, or as in XL."""

    SD = frozenset(
        {
            "down_blocks.0",
            "down_blocks.1",
            "down_blocks.2",
            "mid_block.attentions",
            "up_blocks.1",
            "up_blocks.2",
            "up_blocks.3",
        }
    )
    SDXL = frozenset({"down_blocks.1", "down_blocks.2", "mid_block.attentions", "up_blocks.0", "up_blocks.1"})


def layout_of(layers: Mapping[str, Delta]) -> Layout | None:
    """Returns the layout of a residual's U-Net, None where it is neither or its layers do not decide."""
    blocks = {".".join(path.split(".")[:2]) for path in layers}
    fitting = [layout for layout in Layout if blocks <= layout.value]
    return fitting[0] if len(fitting) == 1 else None


def kohya_name(path: str, layout: Layout | None = None) -> str:
    """Returns the name that kohya's trainer gives a layer: ``lora_unet_`` and its path with ``_`` for ``.``.

    ``down_blocks.1.attentions.0.proj_out`` is ``lora_unet_down_blocks_1_attentions_0_proj_out``; in SDXL, whose U-Net kohya has under the
    original names, ``lora_unet_input_blocks_4_1_proj_out``.
    """
    return _KOHYA + (ldm_name(path) if layout is Layout.SDXL else path).replace(".", "_")


def to_kohya(layers: Mapping[str, Delta]) -> TensorsAndHeader:
    """Returns tensors and header as kohya's sd-scripts write them and ComfyUI and AUTOMATIC1111 read them, alpha = rank."""
    tensors, layout = {}, layout_of(layers)
    for path, delta in layers.items():
        name = kohya_name(path, layout)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = delta.as_layers()
        tensors[f"{name}.alpha"] = torch.tensor(float(delta.rank))
    return tensors, {"format": "pt"}


def to_embedding(vectors: list[torch.Tensor]) -> TensorsAndHeader:
    """Returns V* as a Textual-Inversion file, a vector [1, width] for each text tower.

    One tower's is ``emb_params``, which AUTOMATIC1111, ComfyUI (by the file's name) and diffusers (``load_textual_inversion(path,
    token="<v*>")``) read; SDXL's two are ``clip_l`` and ``clip_g``.
    """
    named = zip(EMBEDDINGS[len(vectors)], vectors, strict=True)
    return {key: vector.detach().float().reshape(1, -1).contiguous() for key, vector in named}, {"format": "pt"}


FORMATS: dict[str, Callable[[Mapping[str, Delta]], TensorsAndHeader]] = {"diffusers": to_peft, "kohya": to_kohya}
