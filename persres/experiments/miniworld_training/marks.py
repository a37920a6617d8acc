"""Train the marks classifier on the nameless shards, whose parts, emblems and bands are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from persres.experiments.miniworld_training.loop import Budget, fit, images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.miniworld.attribute_classifier import AttributeClassifier, load_attribute_classifier
from persres.miniworld.marks import FILE, HEADS, PART_COLOURS, PARTS, MarksClassifier, part_colours
from persres.miniworld.render import Scene

PARTS_WEIGHT = 3.0
UNKNOWN = -100  # cross_entropy's label for what an image does not show


def mark_labels(scene: Scene) -> dict[str, np.ndarray]:
    """Labels of the scene's subject: ``parts`` [slots] and one number for every head; UNKNOWN where a sketch or another class shows none."""
    appearance, coloured = scene.subject, scene.style != "sketch"
    colours = {(appearance.kind, name): colour for name, colour in part_colours(appearance).items()}
    shape, colour = appearance.emblem or ("none", None)
    band = HEADS["band"].index(appearance.band or "none")
    return {
        "parts": np.array(
            [PART_COLOURS.index(colours[slot]) if coloured and slot in colours else UNKNOWN for slot in PARTS]
        ),
        "emblem": np.array(HEADS["emblem"].index(shape)),
        "emblem_colour": np.array(HEADS["emblem_colour"].index(colour) if colour and coloured else UNKNOWN),
        "band": np.array(band if coloured else UNKNOWN),
    }


def marks_loss(out: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the parts, which few images recolour, three times, plus that of every head."""
    total = PARTS_WEIGHT * F.cross_entropy(out["parts"].flatten(0, 1), labels["parts"].flatten(), ignore_index=UNKNOWN)
    for head in HEADS:
        total = total + F.cross_entropy(out[head], labels[head], ignore_index=UNKNOWN)
    return total


def features_of(classifier: AttributeClassifier) -> dict[str, torch.Tensor]:
    """The attribute classifier's convolutions as the state of ``MarksClassifier.deep``, which has the same ones in a row."""
    blocks = [block for part in (classifier.stem, classifier.middle, classifier.deep) for block in part]
    return torch.nn.Sequential(*blocks).state_dict()


def train_marks_classifier(recipe: Recipe, images: np.ndarray, scenes: list[Scene], folder: Path, out: Path) -> None:
    """Train on uint8 [n, 64, 64, 3] of nameless scenes, and save fp16 weights next to the attribute classifier's in ``out``.

    It starts from the attribute classifier's features, which know classes and colours.
    """
    torch.manual_seed(recipe.seed)
    device = training_device()
    classifier = MarksClassifier()
    classifier.deep.load_state_dict(features_of(load_attribute_classifier(out)))
    classifier.to(device).train()
    rows = [mark_labels(scene) for scene in scenes]
    labels = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        picked = rng.integers(len(images), size=recipe.marks_batch)
        x = images_to_tensor(images[picked]).to(device)
        x = x.flip(3) if rng.random() < 0.5 else x
        x = x * rng.uniform(0.85, 1.1) + rng.normal(0, 0.03) + 0.05 * torch.randn(x.shape).to(device)
        return marks_loss(classifier(x), {key: value[picked].to(device) for key, value in labels.items()})

    budget, ends = Budget(recipe.marks_steps, 4e-3, decay_from=0.5), ("deep.0", "parts", "heads")
    fit("marks", classifier, loss, budget, folder, recipe.seed, muon=ends)
    save_file({k: v.cpu().half().contiguous() for k, v in classifier.state_dict().items()}, out / FILE)
