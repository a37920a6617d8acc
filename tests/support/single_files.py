"""A pipeline folder of Stable Diffusion 1.x or XL as one safetensors file in the original (LDM) layout, by the names that A1111 and ComfyUI use."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from persres.residuals.ldm_names import ldm_name

_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}


def unet_keys(folder: Path, layers: int) -> dict[str, torch.Tensor]:
    """The U-Net's tensors under the original names."""
    tensors, attention = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), set()
    for key in tensors:
        if match := re.match(r"up_blocks\.(\d+)\.attentions", key):
            attention.add(match[1])
    keys = {}
    for key, value in tensors.items():
        path, _, kind = key.rpartition(".")
        block = re.match(r"up_blocks\.(\d+)\.upsamplers", path)
        name = ldm_name(path, layers)
        if block and block[1] not in attention:
            name = name.replace(".2.conv", ".1.conv")
        keys[f"model.diffusion_model.{name}.{kind}"] = value
    return keys


def vae_keys(folder: Path) -> dict[str, torch.Tensor]:
    """The autoencoder's tensors under the original names: decoder blocks are numbered from the other end."""
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    last = max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.down_blocks."))
    keys = {}
    for key, value in tensors.items():
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
        name = (
            name.replace("down_blocks.", "down.")
            .replace("downsamplers.0", "downsample")
            .replace("upsamplers.0", "upsample")
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = (
            name.replace("mid_block.attentions.0", "mid.attn_1")
            .replace("resnets.", "block.")
            .replace("conv_shortcut", "nin_shortcut")
        )
        name = name.replace("conv_norm_out", "norm_out")
        for ours, original in _ATTENTION.items() if "attn_1" in name else ():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{original}.")
        matrix = "attn_1" in name and value.ndim == 2
        keys[f"first_stage_model.{name}"] = value[..., None, None] if matrix else value
    return keys


def text_keys(folder: Path) -> dict[str, torch.Tensor]:
    """The text encoders' tensors under the original names: CLIP's are transformers', OpenCLIP's are its own."""
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    names = {key: key if key.startswith("text_model.") else f"text_model.{key}" for key in tensors}
    two = (folder / "text_encoder_2").is_dir()
    start = "conditioner.embedders.0.transformer" if two else "cond_stage_model.transformer"
    keys = {f"{start}.{names[key]}": value for key, value in tensors.items()}
    return keys | (open_clip_keys(load_file(folder / "text_encoder_2" / "model.safetensors")) if two else {})


def open_clip_keys(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SDXL's second text encoder: queries, keys and values in one matrix, the projection transposed."""
    keys, start = {}, "conditioner.embedders.1.model"
    for key, value in tensors.items():
        name = key.removeprefix("text_model.")
        if "_proj." in name and ".out_proj." not in name:
            continue
        for ours, original in _OPEN_CLIP.items():
            name = name.replace(ours, original)
        keys[f"{start}.{name}"] = value.T if name == "text_projection" else value
    for layer in sorted({key.partition(".self_attn.")[0] for key in tensors if ".self_attn." in key}):
        number = layer.rpartition(".")[2]
        for kind in ("weight", "bias"):
            parts = [tensors[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            keys[f"{start}.transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
    return keys


def save_single_file(folder: Path, path: Path, layers: int = 1, **changes: torch.Tensor | None) -> Path:
    """The pipeline as one file. ``changes``: tensors by key to add; None leaves those that start with the key out."""
    tensors = unet_keys(folder, layers) | vae_keys(folder) | text_keys(folder)
    for key, value in changes.items():
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(key)}
        tensors |= {} if value is None else {key: value}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path
