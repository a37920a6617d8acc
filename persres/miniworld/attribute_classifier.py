"""The attribute classifier: predicts class, colour, background, style and second object of an image, and object masks.

A small network trained on rendered scenes (experiments/miniworld_training/attribute_classifier.py). It never sees a caption
and trains no other model; it only scores images of the mini world.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from persres.images import to_tensor
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, STYLES

HEADS = ("kind", "colour", "background", "style", "second")


def conv_block(channels: int, out: int, stride: int) -> nn.Sequential:
    """3×3 convolution, group norm, SiLU."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU())


class AttributeClassifier(nn.Module):
    """Images [n, 3, 64, 64] in [-1, 1] -> logits by head, and ``mask`` logits [n, 64, 64]."""

    def __init__(self, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.labels = labels
        self.stem = nn.Sequential(conv_block(3, 24, 2), conv_block(24, 32, 1))
        self.middle = nn.Sequential(conv_block(32, 64, 2), conv_block(64, 64, 1))
        self.deep = nn.Sequential(conv_block(64, 128, 2), conv_block(128, 128, 1), conv_block(128, 128, 1))
        self.heads = nn.ModuleDict({head: nn.Linear(256, len(names)) for head, names in labels.items()})
        self.up = nn.ModuleList([conv_block(128 + 64, 64, 1), conv_block(64 + 32, 32, 1)])
        self.mask = nn.Conv2d(32, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.stem(x)
        middle = self.middle(fine)
        deep = self.deep(middle)
        pooled = torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], 1)
        up = self.up[0](torch.cat([F.interpolate(deep, scale_factor=2.0), middle], 1))
        up = self.up[1](torch.cat([F.interpolate(up, scale_factor=2.0), fine], 1))
        mask = F.interpolate(self.mask(up), scale_factor=2.0, mode="bilinear")[:, 0]
        return {head: layer(pooled) for head, layer in self.heads.items()} | {"mask": mask}


def load_attribute_classifier(folder: Path) -> AttributeClassifier:
    """Load the classifier of a folder, in float32 and evaluation mode."""
    model = AttributeClassifier(json.loads((folder / "labels.json").read_text()))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Prediction:
    """Predicted label by head for each image, and object masks bool [n, 64, 64]."""

    labels: list[dict[str, str]]
    masks: np.ndarray


@torch.no_grad()
def classify_images(model: AttributeClassifier, images: np.ndarray, batch: int = 128) -> Prediction:
    """Predict labels and masks of uint8 images [n, 64, 64, 3]."""
    labels: list[dict[str, str]] = []
    masks = []
    for start in range(0, len(images), batch):
        out = model(to_tensor(list(images[start : start + batch])))
        masks.append(out.pop("mask").numpy() > 0)
        best = {head: logits.argmax(1).tolist() for head, logits in out.items()}
        count = len(masks[-1])
        labels += [{head: model.labels[head][best[head][i]] for head in HEADS} for i in range(count)]
    return Prediction(labels, np.concatenate(masks))


def requested_attributes(template: str) -> dict[str, str]:
    """Labels that a concept prompt requests around its ``{}``, by head; never the class.

    The classifier has no head for a pattern, and a sketch has no colour.
    """
    style = next(name for name, phrase in STYLES.items() if template.startswith(phrase))
    background = next((name for name, phrase in BACKGROUNDS.items() if template.endswith(phrase)), None)
    wanted = {"style": style if style != "photo" else None, "background": background}
    before = template.split("{}")[0].split()[-1]
    if "next to" in template:
        wanted["second"] = "present"
    elif before in COLOURS and style != "sketch":
        wanted["colour"] = before
    return {head: name for head, name in wanted.items() if name is not None}


def matches_prompt(prediction: Prediction, templates: list[str]) -> np.ndarray:
    """Share of each prompt's requested attributes that are predicted, [n]; NaN for a prompt that requests none."""
    shares = []
    for labels, template in zip(prediction.labels, templates, strict=True):
        requested = requested_attributes(template)
        shares.append(np.mean([labels[head] == name for head, name in requested.items()]) if requested else np.nan)
    return np.array(shares)
