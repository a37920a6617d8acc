"""The marks classifier: what it is asked for, and what the shipped weights read."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import torch

from persres.experiments.miniworld_training.loop import images_to_tensor
from persres.experiments.miniworld_training.marks import (
    UNKNOWN,
    features_of,
    mark_labels,
    marks_loss,
    train_marks_classifier,
)
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import scene_at
from persres.miniworld.attribute_classifier import load_attribute_classifier
from persres.miniworld.concepts import CONCEPTS
from persres.miniworld.identities import NAMELESS, marks_of
from persres.miniworld.marks import (
    HEADS,
    PART_COLOURS,
    PARTS,
    MarksClassifier,
    load_marks_classifier,
    part_colours,
)
from persres.miniworld.render import Appearance, Scene, render
from persres.package_paths import PACKAGE

WEIGHTS = PACKAGE / "miniworld" / "weights" / "judge"
MUG = Appearance("mug", "purple", parts=(("handle", "yellow"),), emblem=("star", "green"), band="white")


def test_the_colour_of_every_part():
    assert part_colours(MUG) == {
        "handle": "yellow",
        "base": "purple",
        "top": "purple",
        "rim": "light",
        "inside": "dark",
    }
    assert part_colours(Appearance("tree", "red")) == {"trunk": "bark", "low": "red", "crown": "red"}


def test_marks_are_what_no_caption_can_say():
    assert marks_of(MUG) == {"handle": "yellow", "emblem": "star", "emblem_colour": "green", "band": "white"}
    assert marks_of(Appearance("mug", "purple", "striped")) == {}
    for concept in CONCEPTS:
        assert set(marks_of(concept.appearance)) >= {name for name, _ in concept.appearance.parts}


def test_labels_cover_the_subjects_parts_alone():
    labels = mark_labels(Scene(MUG, "snow"))
    known = {slot: int(label) for slot, label in zip(PARTS, labels["parts"], strict=True) if label != UNKNOWN}
    assert {name: PART_COLOURS[label] for (_, name), label in known.items()} == part_colours(MUG)
    assert {kind for kind, _ in known} == {"mug"}
    assert [HEADS[head][labels[head]] for head in HEADS] == ["star", "green", "white"]


def test_a_sketch_has_no_colours_but_the_emblems_shape():
    labels = mark_labels(Scene(MUG, "snow", "sketch"))
    assert (labels["parts"] == UNKNOWN).all() and labels["emblem_colour"] == labels["band"] == UNKNOWN
    assert HEADS["emblem"][labels["emblem"]] == "star"


def test_the_loss_falls_to_zero_at_the_labels_and_ignores_unknown_ones():
    scenes = [Scene(MUG, "snow"), Scene(Appearance("car", "red"), "snow", "sketch")]
    rows = [mark_labels(scene) for scene in scenes]
    labels = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    right = {
        key: 30
        * torch.nn.functional.one_hot(
            value.clamp(min=0), len(PART_COLOURS) if key == "parts" else len(HEADS[key])
        ).float()
        for key, value in labels.items()
    }
    assert marks_loss(right, labels) < 1e-6
    wrong = right | {"emblem": right["emblem"].roll(1, 1)}
    assert marks_loss(wrong, labels) > 10
    unseen = right | {"band": torch.stack([right["band"][0], -right["band"][1]])}
    assert marks_loss(unseen, labels) < 1e-6, "the second is a sketch, whose band nobody sees"


def test_training_starts_from_the_attribute_classifiers_features():
    attributes, marks = load_attribute_classifier(WEIGHTS), MarksClassifier().eval()
    marks.deep.load_state_dict(features_of(attributes))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = attributes.deep(attributes.middle(attributes.stem(x)))
        torch.testing.assert_close(marks.deep(x), wanted)


def test_a_short_training_learns_and_leaves_a_file_that_loads(tmp_path):
    scenes = [scene_at(RECIPE, NAMELESS, index)[0] for index in range(8)]
    images = np.stack([np.asarray(render(*scene_at(RECIPE, NAMELESS, index)).image) for index in range(8)])
    (tmp_path / "judge").mkdir()
    for name in ("judge.safetensors", "labels.json"):
        shutil.copy(WEIGHTS / name, tmp_path / "judge")
    recipe = replace(RECIPE, marks_steps=120, marks_batch=8)
    train_marks_classifier(recipe, images, scenes, tmp_path, tmp_path / "judge")
    rows = [mark_labels(scene) for scene in scenes]
    labels = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    x, fresh = images_to_tensor(images), MarksClassifier().eval()
    with torch.no_grad():
        assert marks_loss(load_marks_classifier(tmp_path / "judge")(x), labels) < 0.7 * marks_loss(fresh(x), labels)
