"""The mini DINO: a timm ViT trained without labels, in place of DINO ViT-S/16.

The two views of an identity are images of it in different poses on different backgrounds, instead of crops and colour jitter: they
share the object. The loss is lightly's NT-Xent. Its DINO loss collapsed at the batch sizes of a CPU (identity AUC 0.50 after 250 steps
of 96 images); NT-Xent needs no teacher and no centring.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from persres.experiments.miniworld_training.clip import two_views
from persres.experiments.miniworld_training.loop import Budget, fit, training_device
from persres.experiments.miniworld_training.recipe import Recipe

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "num_classes": 0}


class _WithHead(nn.Module):
    """The ViT and a projection head; only the ViT is saved."""

    def __init__(self) -> None:
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        self.vit = timm.create_model(ARCHITECTURE, **MODEL_ARGS)
        self.head = SimCLRProjectionHead(MODEL_ARGS["embed_dim"], 256, 64, batch_norm=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.vit(x))


def train_dino(recipe: Recipe, identities: np.ndarray, folder: Path, out: Path) -> nn.Module:
    """Train on uint8 [identities, views, 64, 64, 3] and save for timm's ``local-dir:`` schema; return the ViT."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(recipe.seed)
    device = training_device()
    model, contrast = _WithHead().to(device), NTXentLoss(temperature=0.1)

    def loss(step: int, seed: int) -> torch.Tensor:
        views = torch.cat(two_views(identities, recipe.dino_batch, np.random.default_rng(seed))).to(device)
        with torch.autocast(views.device.type, torch.bfloat16):
            one, two = model(views).chunk(2)
        return contrast(one.float(), two.float())

    budget = Budget(recipe.dino_steps, 1e-3, decay_from=0.3, weight_decay=0.04, ema=0.99)
    vit = fit("dino", model, loss, budget, folder, recipe.seed).vit.cpu()
    save_dino(vit, out)
    return vit


def save_dino(vit: nn.Module, out: Path) -> None:
    """Write fp16 weights and a config.json for ``timm.create_model('local-dir:…')``."""
    out.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() for k, v in vit.state_dict().items()}
    save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    norm = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": MODEL_ARGS["embed_dim"],
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "fixed_input_size": True,
            "num_classes": 0,
            "classifier": "head",
            **norm,
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
