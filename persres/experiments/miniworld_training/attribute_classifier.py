"""Train the attribute classifier on rendered scenes, whose attributes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from persres.experiments.miniworld_training.loop import Budget, fit, images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import SceneSet
from persres.miniworld.attribute_classifier import HEADS, AttributeClassifier, Prediction
from persres.miniworld.render import Scene
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS


def label_names(recipe: Recipe) -> dict[str, list[str]]:
    """The classes of every head."""
    return {
        "kind": list(recipe.kinds),
        "colour": list(COLOURS),
        "background": list(BACKGROUNDS),
        "style": list(recipe.styles),
        "second": ["absent", "present"],
    }


def labels_of(scene: Scene) -> dict[str, str]:
    """The true labels of a scene."""
    second = "present" if scene.second is not None else "absent"
    return {
        "kind": scene.subject.kind,
        "colour": scene.subject.colour,
        "background": scene.background,
        "style": scene.style,
        "second": second,
    }


def accuracy(prediction: Prediction, scenes: list[Scene]) -> dict[str, float]:
    """Accuracy by head, over the scenes to which the head applies."""
    hits: dict[str, list[bool]] = {head: [] for head in HEADS}
    for labels, scene in zip(prediction.labels, scenes, strict=True):
        truth = labels_of(scene)
        for head in HEADS:
            applies = head in ("background", "style", "second") or scene.second is None
            if applies and not (head == "colour" and scene.style == "sketch"):
                hits[head].append(labels[head] == truth[head])
    return {head: float(np.mean(h)) if h else float("nan") for head, h in hits.items()}


def _targets(names: dict[str, list[str]], scenes: list[Scene]) -> dict[str, torch.Tensor]:
    labels = [labels_of(scene) for scene in scenes]
    return {head: torch.tensor([options.index(t[head]) for t in labels]) for head, options in names.items()}


def _loss(
    classifier: AttributeClassifier, x: torch.Tensor, targets: dict[str, torch.Tensor], masks: torch.Tensor
) -> torch.Tensor:
    """The loss of all heads and the mask. Class and colour count for single objects only, because the subject of two cannot be
    identified; a sketch has no colour."""
    out = classifier(x)
    total = F.binary_cross_entropy_with_logits(out["mask"], masks)
    single = targets["second"] == 0
    coloured = single & (targets["style"] != classifier.labels["style"].index("sketch"))
    for head in HEADS:
        rows = single if head == "kind" else coloured if head == "colour" else torch.ones_like(single)
        total = total + F.cross_entropy(out[head][rows], targets[head][rows])
    return total


def train_attribute_classifier(recipe: Recipe, scenes: SceneSet, folder: Path, out: Path) -> AttributeClassifier:
    """Train on rendered scenes, save fp16 weights with the label names, and return the model."""
    torch.manual_seed(recipe.seed)
    device = training_device()
    classifier = AttributeClassifier(label_names(recipe)).to(device)
    targets = _targets(classifier.labels, scenes.scenes)

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(scenes.images), size=recipe.classifier_batch)
        x = images_to_tensor(scenes.images[rows]).to(device)
        masks = torch.from_numpy(scenes.masks[rows].any(1)).float().to(device)
        if rng.random() < 0.5:
            x, masks = x.flip(3), masks.flip(2)
        x = x * rng.uniform(0.85, 1.1) + rng.normal(0, 0.03) + 0.05 * torch.randn_like(x)
        return _loss(classifier, x, {k: v[rows].to(device) for k, v in targets.items()}, masks)

    fit("judge", classifier, loss, Budget(recipe.classifier_steps, 2e-3, decay_from=0.4), folder, recipe.seed)
    classifier.cpu()
    out.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() for k, v in classifier.state_dict().items()}
    save_file(half, out / "judge.safetensors", metadata={"labels": json.dumps(classifier.labels)})
    (out / "labels.json").write_text(json.dumps(classifier.labels, indent=2))
    return classifier
