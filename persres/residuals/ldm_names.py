"""Layers of a U-Net by the names of the original Stable Diffusion code (LDM), which A1111, ComfyUI, kohya's SDXL and OneTrainer use.

LDM numbers all resnets, downsamplers and upsamplers of one side in a row: ``down_blocks.1.attentions.0`` is ``input_blocks.4.1``.
"""

from __future__ import annotations

import re

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OTHERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
LAYERS = 2  # resnets in a block of SD 1.x, 2.x and XL


def ldm_name(path: str, layers: int = LAYERS) -> str:
    """Returns LDM's name of a layer; ``layers`` are the U-Net's ``layers_per_block``. Other layers keep their names.

    An upsampler counts as the third part of its place, as where its block has attention; in a block without it is the second.
    """
    if match := _BLOCK.fullmatch(path):
        return _in_block(match, layers)
    if match := _MIDDLE.fullmatch(path):
        kind, number, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_RESNET.get(rest, rest)}"
    return _OTHERS.get(path, path)


def _in_block(match: re.Match[str], layers: int) -> str:
    side, kind, rest = match[1], match[3], match[5]
    block, number = int(match[2]), int(match[4])
    first = block * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.2.{rest}"
    place = f"input_blocks.{first + number + 1}" if side == "down" else f"output_blocks.{first + number}"
    return f"{place}.{1 if kind == 'attentions' else 0}.{_RESNET.get(rest, rest)}"
