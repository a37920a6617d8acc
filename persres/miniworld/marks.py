"""The marks classifier: reads the colours of an object's parts, its emblem and its band from an image.

They are what a caption of the mini world cannot describe, so they make a concept. CLIP and DINO hardly see them; this network was trained on
rendered nameless objects (experiments/miniworld_training/marks.py), and never on a concept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from persres.images import square, to_tensor
from persres.miniworld.attribute_classifier import conv_block
from persres.miniworld.identities import concept_named, marks_of
from persres.miniworld.render import FIXED, SIZE, Appearance
from persres.miniworld.shapes import SHAPES
from persres.miniworld.vocabulary import COLOURS, EMBLEMS, STYLES

FILE = "marks.safetensors"
PART_COLOURS = (*COLOURS, *FIXED)
PARTS = tuple((kind, name) for kind, parts in SHAPES.items() for name, _, _ in parts)  # slots of the part colours
HEADS = {"emblem": ("none", *EMBLEMS), "emblem_colour": tuple(COLOURS), "band": ("none", *COLOURS)}


class MarksClassifier(nn.Module):
    """Images [n, 3, 64, 64] in [-1, 1] -> ``parts`` [n, slots, part colours] and the logits of :data:`HEADS`."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            conv_block(3, 24, 2),
            conv_block(24, 32, 1),
            conv_block(32, 64, 2),
            conv_block(64, 64, 1),
            conv_block(64, 128, 2),
            conv_block(128, 128, 1),
            conv_block(128, 128, 1),
        )
        self.places = nn.Conv2d(128, 16, 1)  # keeps where things are, which pooling loses
        self.features = nn.Sequential(nn.Linear(2 * 128 + 16 * 8 * 8, 256), nn.SiLU())
        self.parts = nn.Linear(256, len(PARTS) * len(PART_COLOURS))
        self.heads = nn.ModuleDict({head: nn.Linear(256, len(names)) for head, names in HEADS.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        deep = self.deep(x)
        features = self.features(torch.cat([deep.mean((2, 3)), deep.amax((2, 3)), self.places(deep).flatten(1)], 1))
        parts = self.parts(features).unflatten(1, (len(PARTS), len(PART_COLOURS)))
        return {"parts": parts} | {head: layer(features) for head, layer in self.heads.items()}


def part_colours(appearance: Appearance) -> dict[str, str]:
    """The colour name of every part."""
    recoloured = dict(appearance.parts)
    main = dict.fromkeys(("body", "trim"), appearance.colour)
    return {name: recoloured.get(name, main.get(role, role)) for name, role, _ in SHAPES[appearance.kind]}


def load_marks_classifier(folder: Path) -> MarksClassifier:
    """Load the classifier of a folder, in float32 and evaluation mode."""
    model = MarksClassifier()
    model.load_state_dict({k: v.float() for k, v in load_file(folder / FILE).items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def read_marks(model: MarksClassifier, images: np.ndarray, kind: str, batch: int = 128) -> list[dict[str, str]]:
    """What the classifier reads on uint8 images [n, h, w, 3] of objects of a class: part -> colour, and :data:`HEADS` -> name."""
    slots = [slot for slot, (owner, _) in enumerate(PARTS) if owner == kind]
    result: list[dict[str, str]] = []
    for start in range(0, len(images), batch):
        shown = [square(Image.fromarray(image), SIZE) for image in images[start : start + batch]]
        out = model(to_tensor(shown))
        colours = out["parts"][:, slots].argmax(2).tolist()
        best = {head: out[head].argmax(1).tolist() for head in HEADS}
        for row, seen in enumerate(colours):
            read = {PARTS[slot][1]: PART_COLOURS[colour] for slot, colour in zip(slots, seen, strict=True)}
            result.append(read | {head: HEADS[head][best[head][row]] for head in HEADS})
    return result


def marks_shown(model: MarksClassifier, images: np.ndarray, concept: str, templates: list[str]) -> np.ndarray:
    """Share of the concept's marks that are read on each image, [n]. A sketch shows no colours, only the emblem's shape; NaN where nothing is
    left to read."""
    appearance = concept_named(concept).appearance
    wanted, read = marks_of(appearance), read_marks(model, images, appearance.kind)
    return np.array([_share(wanted, seen, text) for seen, text in zip(read, templates, strict=True)])


def _share(wanted: dict[str, str], read: dict[str, str], template: str) -> float:
    if template.startswith(STYLES["sketch"]):
        wanted = {mark: name for mark, name in wanted.items() if mark == "emblem"}
    return float(np.mean([read[mark] == name for mark, name in wanted.items()])) if wanted else float("nan")
