"""Models of a few thousand random weights, shaped like the real ones."""

from __future__ import annotations

import torch


def tiny_unet(linear: bool = False, layers: int = 1, seed: int = 0):
    """A U-Net of a few thousand weights with every kind of block that Stable Diffusion has."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=linear,
        transformer_layers_per_block=layers,
    ).eval()
