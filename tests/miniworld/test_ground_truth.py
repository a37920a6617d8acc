"""The right answers: the scene that a prompt asks for, with the concept itself in it."""

from __future__ import annotations

import numpy as np
import pytest

from persres.miniworld.concepts import CONCEPTS, concept_named, concept_prompts
from persres.miniworld.ground_truth import prompted_scene, render_prompt
from persres.miniworld.marks import marks_of
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
    with pytest.raises(ValueError, match="no concept 'lost_dog'; it has heart_mug"):
        render_prompt("lost_dog", "a photo of a {}", 0)
