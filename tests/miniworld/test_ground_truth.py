"""The right answers: the scene that a prompt asks for, with the concept itself in it."""

from __future__ import annotations

import numpy as np
import pytest

from persres.config.schema import Fetch
from persres.datasets.miniworld import fetch, size
from persres.miniworld.concepts import CONCEPTS, concept_prompts
from persres.miniworld.ground_truth import prompted_scene, render_prompt
from persres.miniworld.identities import concept_named, marks_of, nameless_concept
from persres.miniworld.render import Appearance
from persres.miniworld.vocabulary import BACKGROUNDS, STYLES

ROBOT = concept_named("star_robot").appearance


def scene(template: str, appearance: Appearance = ROBOT, seed: int = 0):
    return prompted_scene(appearance, template, np.random.default_rng(seed))


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_background_is_the_prompts(name):
    assert scene(f"a photo of a {{}} {BACKGROUNDS[name]}").background == name


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_the_prompts(style):
    assert scene(f"{STYLES[style]} a {{}}").style == style
    assert scene(f"{STYLES[style]} a {{}} in the snow").background == "snow"


def test_an_open_background_is_any():
    backgrounds = {scene("a photo of a {}", seed=seed).background for seed in range(200)}
    assert backgrounds == set(BACKGROUNDS)


@pytest.mark.parametrize(
    ("template", "second"),
    [
        ("a photo of a {} next to a red ball", Appearance("ball", "red")),
        ("a photo of a {} next to a yellow striped tree in the desert", Appearance("tree", "yellow", "striped")),
        ("pixel art of a {} next to a blue house", Appearance("house", "blue")),
    ],
)
def test_a_second_object_stands_next_to_the_concept(template, second):
    shown = scene(template)
    assert shown.second == second and shown.subject == ROBOT


def test_a_red_version_keeps_parts_and_marks():
    red = scene("a photo of a red {}").subject
    assert red.colour == "red" and ROBOT.colour == "blue"
    assert marks_of(red) == marks_of(ROBOT) == {"head": "orange", "emblem": "star", "emblem_colour": "yellow"}
    striped = scene("a photo of a striped {} in the forest")
    assert striped.subject.pattern == "striped" and striped.subject.colour == "blue"
    assert striped.background == "forest"


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_every_prompt_of_a_concept_can_be_drawn(concept):
    for group, template in concept_prompts(concept.appearance.kind, concept.backgrounds):
        shown = scene(template, concept.appearance)
        assert marks_of(shown.subject) == marks_of(concept.appearance)
        assert (shown.second is not None) == (group == "object")
        assert (shown.style != "photo") == (group == "style")
    image = render_prompt(concept.name, template, 3)
    assert image.size == (64, 64) and image.tobytes() == render_prompt(concept.name, template, 3).tobytes()
    assert image.tobytes() != render_prompt(concept.name, template, 4).tobytes(), "another seed is another pose"


@pytest.mark.parametrize(
    "wrong",
    [
        "a {}",
        "a photo of a cat",
        "a photo of a {} riding a horse",
        "a photo of a golden {}",
        "a photo of a {} next to a dragon",
        "a photo of a {} next to a red",
        "a photo of a {} and a {}",
        "",
    ],
)
def test_a_prompt_outside_the_grammar_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot draw"):
        scene(wrong)


def test_an_unknown_concept_is_refused():
    with pytest.raises(ValueError, match="no lost_dog; it has heart_mug"):
        render_prompt("lost_dog", "a photo of a {}", 0)


def test_nameless_concepts_are_others_than_the_ten_and_stay_the_same():
    nameless = [nameless_concept(index) for index in range(20)]
    looks = {concept.appearance for concept in nameless}
    assert len(looks) == 20 and not looks & {concept.appearance for concept in CONCEPTS}
    for concept in nameless:
        marks = marks_of(concept.appearance)
        assert len(marks) >= 2 and concept.appearance.colour not in marks.values()
        assert 1 <= len(concept.backgrounds) <= 2
        assert concept_named(concept.name) == concept


@pytest.mark.parametrize(
    "name", ["nameless", "nameless_", "nameless_x", "nameless_-1", "nameless_01", "nameless_²", "nameless_1.5"]
)
def test_no_other_name_is_a_nameless_concept(name):
    with pytest.raises(ValueError, match="has no nameless"):
        concept_named(name)


def test_nameless_concepts_are_fetched_as_any_other(tmp_path):
    settings = Fetch(dataset="miniworld", concepts=("nameless_3", "heart_mug"), references=2, held_out=0)
    assert fetch(settings, tmp_path) == 2 and size(settings) == (2, 40)
    assert len(list((tmp_path / "nameless_3" / "images").glob("*.png"))) == 2
