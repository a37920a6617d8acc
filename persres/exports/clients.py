"""What other tools show of a LoRA: kohya's ``ss_`` entries, Stability's ``modelspec`` entries, a cover image, and A1111's file of notes.

Sources: kohya-ss/sd-scripts ``train_network.py`` and ``library/sai_model_spec.py``; AUTOMATIC1111 ``extensions-builtin/Lora/network.py``
(which version of Stable Diffusion a file is for, by ``ss_base_model_version`` and ``ss_v2``), ``ui_edit_user_metadata.py`` (the notes) and
``ui_extra_networks.py`` (``ssmd_cover_images``).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from persres.exports.formats import Layout, layout_of
from persres.residuals.file import ResidualFile
from persres.residuals.header import UNKNOWN
from persres.residuals.lora import Delta

COVER = 512  # pixels of the longer side
_WIDTHS = {320, 640, 1280}  # of layers of Stable Diffusion 1.x, 2.x and XL
_STABILITY = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class Family:
    """A family of base models by the words of other tools: kohya's version, modelspec's architecture, A1111's version."""

    version: str
    architecture: str
    a1111: str
    prediction: str = "epsilon"


FAMILIES = {
    "sd1": Family("sd_v1", "stable-diffusion-v1", "SD1"),
    "sd2": Family("sd_v2", "stable-diffusion-v2-512", "SD2"),
    "sd2_v": Family("sd_v2_v", "stable-diffusion-v2-768-v", "SD2", "v"),
    "sdxl": Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL"),
}


def family_of(layers: Mapping[str, Delta], resolution: int) -> Family | None:
    """Returns the family whose layers these are, None where they are no Stable Diffusion's.

    SD 1.x has convolutions where 2.x has linear layers; its text has 768 numbers a token. 2.x predicts velocity from 768 pixels on.
    """
    layout = layout_of(layers)
    if layout is None or {len(delta.up) for delta in layers.values()} - _WIDTHS:
        return None
    if layout is Layout.SDXL:
        return FAMILIES["sdxl"]
    first = any(delta.down.ndim == 4 or delta.down.shape[1] == 768 for delta in layers.values())
    return FAMILIES["sd1" if first else "sd2" if resolution < 768 else "sd2_v"]


def trigger_phrase(residual: ResidualFile, stem: str) -> str:
    """Returns the words for the concept in a LoRA loader's prompts: the rare token, or the name of V*'s own embedding file, and the class."""
    header = residual.header
    word = header.base.rare_token if residual.token is None else embedding_name(stem)
    return f"{word} {header.macro_class}" if header.settings.name_class else word


def embedding_name(stem: str) -> str:
    """Returns the name, without suffix, of V*'s embedding file, by which A1111 and ComfyUI know it."""
    return f"{stem}.v_star"


def model_entries(residual: ResidualFile, stem: str, about: Mapping[str, Any]) -> dict[str, str]:
    """Returns the ``modelspec`` entries of an export; ``about`` is its provenance, see :mod:`persres.exports.metadata`."""
    header, phrase = residual.header, trigger_phrase(residual, stem)
    family = family_of(residual.layers, header.base.resolution)
    licence = about.get("photos_licence", UNKNOWN)
    entries = {
        "sai_model_spec": "1.0.0",
        "title": stem,
        "description": f"A {header.macro_class}: write {phrase!r} in prompts. Personalized residuals, trained by persres.",
        "resolution": f"{header.base.resolution}x{header.base.resolution}",
        "trigger_phrase": phrase,
        "usage_hint": f"a photo of a {phrase}",
        "tags": header.macro_class,
    }
    entries |= {} if licence == UNKNOWN else {"license": licence}
    if family is not None:
        implementation = _STABILITY if family is FAMILIES["sdxl"] else "diffusers"
        entries |= {"architecture": f"{family.architecture}/lora", "implementation": implementation}
        entries["prediction_type"] = family.prediction
    return {f"modelspec.{key}": value for key, value in entries.items()}


def kohya_entries(
    residual: ResidualFile, stem: str, about: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Returns the ``ss_`` entries that kohya's trainer writes, and the hash by which A1111 knows the file."""
    header, resolution = residual.header, residual.header.base.resolution
    ranks = sorted({delta.rank for delta in residual.layers.values()})
    photos = max(1, int(about.get("photos", 1)))
    digest = tensor_hash(tensors)
    entries = {
        "ss_output_name": stem,
        "ss_sd_model_name": Path(header.base.model).name or header.base.model,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_num_train_images": str(photos),
        "ss_tag_frequency": json.dumps({f"1_{header.concept}": {trigger_phrase(residual, stem): photos}}),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks[-1]),
        "ss_network_alpha": str(float(ranks[-1])),
        "ss_training_comment": f"persres; ranks {', '.join(map(str, ranks))}, alpha = rank in every layer",
        "sshs_model_hash": digest,
        "modelspec.hash_sha256": f"0x{digest}",
    }
    family = family_of(residual.layers, resolution)
    if family is not None:
        entries |= {"ss_base_model_version": family.version, "ss_v2": str(family.a1111 == "SD2")}
    return entries


def tensor_hash(tensors: dict[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of a safetensors file's bytes after its header, hex."""
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def cover_entries(image: Image.Image) -> dict[str, str]:
    """Returns the header's entries for a cover image: modelspec's and A1111's, a JPEG of at most :data:`COVER` pixels."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((COVER, COVER))
    small.save(buffer, "JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {
        "modelspec.thumbnail": f"data:image/jpeg;base64,{encoded}",
        "ssmd_cover_images": json.dumps([encoded]),
    }


def sidecar(residual: ResidualFile, stem: str) -> dict[str, Any]:
    """Returns A1111's notes of a LoRA, which it reads from the JSON file next to it."""
    header, phrase = residual.header, trigger_phrase(residual, stem)
    family = family_of(residual.layers, header.base.resolution)
    return {
        "description": f"A {header.macro_class}, trained by persres on {Path(header.base.model).name}",
        "sd version": "Unknown" if family is None else family.a1111,
        "activation text": phrase,
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"V* is {phrase!r} in prompts.",
    }
