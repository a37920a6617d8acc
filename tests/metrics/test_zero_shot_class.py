"""Zero-shot class: WordNet's table, names among its hypernyms, the diffusion classifier, the stage."""

from __future__ import annotations

import json
import logging
import lzma
import math

import pytest
import torch

from persres.config.schema import ZeroShotClassSettings
from persres.datasets.wordnet import COUNT, load_nouns
from persres.datasets.wordnet.senses import SYNSETS, load_senses
from persres.errors import PersresError
from persres.experiments import wordnet_senses
from persres.experiments.extensions.zero_shot_class import real_photos
from persres.metrics.class_naming import assign_names, best_names, name_probabilities
from persres.metrics.diffusion_classifier import denoising_errors
from persres.metrics.zero_shot_class import Vocabulary, classify, decide, noun_probabilities, penalty
from persres.stages.macro_class import _warn
from persres.units.outputs import read_macro_classes
from persres.workflow import load_context, run_stage

BREEDS = {"corgi": 0.3, "poodle": 0.25, "golden retriever": 0.15, "espresso": 0.3}


def short(word: str) -> int:
    return len(word.split())


def test_the_table_is_wordnets():
    known = load_senses()
    assert (len(known.senses), len(known.file), known.sizes()[0]) == (COUNT, SYNSETS, SYNSETS), (
        "the first synset is entity"
    )
    dog, corgi = known.senses["dog"][0], known.senses["corgi"][0]
    assert dog.count == 42 and dog.synset in known.above(corgi.synset) and corgi.synset not in known.above(dog.synset)
    assert known.shown("happiness") == {} and sum(known.shown("mouse").values()) == pytest.approx(1)


def test_the_table_is_made_from_wordnets_files(tmp_path, monkeypatch):
    (tmp_path / "data.noun").write_text(
        "  1 licence\n00000010 03 n 01 entity 0 000 | all\n"
        "00000020 05 n 02 dog 0 hound 1 002 @ 00000010 n 0000 ~ 00000010 n 0000 | barks\n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 licence\nentity n 1 0 1 0 00000010\ndog n 2 1 @ 2 1 00000020 00000010\nhound n 1 1 @ 1 0 00000020\n"
    )
    (tmp_path / "cntlist.rev").write_text("dog%1:05:00:: 1 42\ndog%2:30:00:: 1 9\n")
    monkeypatch.setattr(wordnet_senses, "load_nouns", lambda: ["dog", "entity", "hound"])
    wordnet_senses.write_senses(tmp_path, tmp_path / "made.xz")
    assert lzma.decompress((tmp_path / "made.xz").read_bytes()).decode() == "1:42 0\n0\n1\n\n3\n5 0\n"


def test_breeds_assign_their_probability_to_dog():
    known = load_senses()
    handed = assign_names(BREEDS, best_names(BREEDS, load_nouns(), known, short), known)
    result = name_probabilities(BREEDS, handed)
    assert (
        next(iter(result)) == "dog" and result["dog"] == pytest.approx(0.7) and sum(result.values()) == pytest.approx(1)
    )
    few = assign_names(BREEDS, best_names(BREEDS, list(BREEDS), known, short), known)
    assert few["corgi"] == {"corgi": 1.0}, "only candidates are names"


def test_a_name_weighs_by_its_use_and_halves_with_each_further_token():
    known = load_senses()
    for noun, tokens in (("dog", 1), ("coffee mug", 2), ("golden retriever", 3)):
        sense = known.senses[noun][0]
        names = best_names([noun], [noun], known, lambda word, tokens=tokens: tokens)
        assert names[sense.synset] == (noun, pytest.approx((1 + math.log1p(sense.count)) / 2 ** (tokens - 1)))


@pytest.mark.parametrize(
    ("mass", "name"),
    [
        ({"sunglasses": 0.5, "camera": 0.2, "headset": 0.3}, "glasses"),  # not "device", their shared hypernym
        ({"sunglasses": 0.5, "goggles": 0.2, "magnifier": 0.3}, "glasses"),  # not "instrument"
    ],
)
def test_a_narrow_name_is_preferred_to_a_broad_one(mass, name):
    known = load_senses()
    result = name_probabilities(mass, assign_names(mass, best_names(mass, load_nouns(), known, short), known))
    assert next(iter(result)) == name and result[name] < 1


def test_a_word_that_wordnet_lacks_names_itself_and_what_no_photo_shows_has_no_name():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]] * 2)
    result = classify(probabilities, Vocabulary(["happiness", "blorb", "mug"], load_senses(), short), 3)
    assert result.noun == "blorb" and result.confidence == pytest.approx(0.6)
    assert classify(probabilities[:, :1], Vocabulary(["happiness"], load_senses(), short), 3) is None


def test_a_template_that_explains_the_background_counts():
    photo = torch.tensor([[0.6, 0.8]])
    plain, on_grass = torch.tensor([[0.8, 0.6], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    alone, both = (noun_probabilities(photo, t, 20.0) for t in ([plain], [plain, on_grass]))
    assert both[0, 0] > alone[0, 0] and both.sum() == pytest.approx(1)


def test_the_diffusion_classifier_overrules_where_the_photos_agree():
    prior = torch.tensor([[0.8, 0.2]] * 4)
    steady = torch.tensor([[1.0, 0.9], [1.1, 0.98], [0.9, 0.82], [1.0, 0.91]])
    result = decide(["fish", "robot"], prior, steady)
    assert result.noun == "robot" and result.confidence > 0.9 and result.agreement == 1
    torn = torch.tensor([[1.0, 0.5], [1.0, 1.5], [1.0, 0.4], [1.0, 1.5]])
    assert decide(["fish", "robot"], prior, torn).noun == "fish"
    assert penalty(steady)[1] == 0 and penalty(steady)[0] > 10 > penalty(steady[:1])[1]
    assert decide(["fish", "robot"], prior, None).confidence == pytest.approx(0.8)


@pytest.fixture(scope="module")
def tiny(tiny_profile, tmp_path_factory):
    import yaml

    folder = tmp_path_factory.mktemp("zero_shot")
    settings = tiny_profile | {
        "macro_class": tiny_profile["macro_class"] | {"source": "zero_shot", "zero_shot_settings": {"noise_levels": 1}}
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": settings}))
    return load_context(folder / "params.yaml", "tiny", folder / "data", folder / "work")


def test_the_stage_selects_the_zero_shot_class_and_logs_its_confidence(tiny, logged):
    for stage in ("fetch", "macro_class"):
        run_stage(stage, tiny)
    result = json.loads((tiny.data / "macro_class" / "macro_class.json").read_text())["concepts"]
    for entry in result.values():
        assert entry["selected"] == entry["zero_shot"] == entry["zero_shot_top"][0][0] and entry["zero_shot"] in (
            "mug",
            "robot",
            "cat",
        )
        assert 0 < entry["confidence"] <= 1 and 0 <= entry["agreement"] <= 1 and entry["nearest"]
    assert read_macro_classes(tiny, "zero_shot") == {name: entry["zero_shot"] for name, entry in result.items()}
    assert "zero-shot class" in logged.text and "confidence" in logged.text
    unsure = [name for name, entry in result.items() if entry["confidence"] < 0.5]
    warned = [
        r.getMessage() for r in logged.records if r.levelno == logging.WARNING and "low confidence" in r.getMessage()
    ]
    assert len(warned) == len(unsure)


@pytest.mark.parametrize(
    ("confidence", "blind", "message"),
    [
        (1.0, False, None),
        (0.3, False, "low confidence in class 'mug'"),
        (1.0, True, "one photo"),
        (0.3, True, "one photo"),
    ],
)
def test_one_photo_is_warned_of_at_any_confidence(logged, confidence, blind, message):
    _warn("cup", {"zero_shot": "mug", "confidence": confidence}, blind)
    warned = [r.getMessage() for r in logged.records if r.levelno == logging.WARNING]
    assert [message in text and "pass --class" in text for text in warned] == ([True] if message else [])


def test_one_photos_confidence_means_nothing():
    """Hence the warning: one photo rules out a name that is worse by almost nothing; five photos that disagree do not."""
    even = torch.full((1, 2), 0.5)
    assert decide(["fish", "robot"], even, torch.tensor([[0.1000, 0.1001]])).confidence > 0.999
    apart = torch.tensor([[0.10, 0.12], [0.12, 0.10], [0.10, 0.13], [0.13, 0.11], [0.11, 0.10]])
    assert decide(["fish", "robot"], even.expand(5, 2), apart).confidence < 0.9


def test_a_class_that_was_not_computed_cannot_be_read(tmp_path, tiny):
    (tmp_path / "macro_class").mkdir()
    (tmp_path / "macro_class" / "macro_class.json").write_text(
        json.dumps({"concepts": {"a": {"selected": "mug", "nearest": None}}})
    )
    for source, key in (("wordnet", "nearest"), ("zero_shot", "zero_shot")):
        with pytest.raises(PersresError, match=f"set macro_class.{key}: true"):
            read_macro_classes(type(tiny)(tiny.profile, tmp_path, tmp_path), source)


def test_the_diffusion_classifier_uses_the_same_noise_for_every_prompt(tiny):
    from PIL import Image

    from persres.models.diffusion import load_diffusion

    photos = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")]
    diffusion = load_diffusion(tiny.profile.base, "cpu")
    errors = denoising_errors(
        diffusion, photos, ["a mug", "a cat", "a mug"], 32, ZeroShotClassSettings(noise_levels=3, batch_size=4)
    )
    assert errors.shape == (2, 3, 3) and torch.equal(errors[..., 0], errors[..., 2])
    assert not torch.equal(errors[..., 0], errors[..., 1]) and not torch.equal(errors[0], errors[1])
    again = denoising_errors(diffusion, photos, ["a mug"], 32, ZeroShotClassSettings(noise_levels=3, batch_size=1))
    assert torch.allclose(errors[..., :1], again, rtol=1e-4)


def test_real_classes_are_bound_to_their_synsets():
    labels = real_photos.class_labels(
        ["Pembroke, Pembroke Welsh corgi", "cardigan", "Cardigan, Cardigan Welsh corgi", "blorb"]
    )
    known = real_photos.senses_with_labels(load_senses(), labels)
    kinds = [
        {known.senses["dog"][0].synset} <= known.above(next(iter(known.shown(label)))) for label in list(labels)[:3]
    ]
    assert kinds == [True, False, True] and "blorb#3" not in known.senses
    assert real_photos.related("bag", "backpack", known) and real_photos.related("dog", "corgi", known)
    assert not real_photos.related("cup", "dog", known)


def test_real_classes_need_photos_and_a_classifier(tmp_path, monkeypatch):
    with pytest.raises(PersresError, match="a folder with one folder per subject"):
        real_photos.measure_photos(tmp_path, tmp_path / "none.txt", tmp_path)
    (tmp_path / "list.txt").write_text("cat2,cat\nsubject_name,class\n")
    with pytest.raises(PersresError, match="names no subject that has a folder"):
        real_photos.measure_photos(tmp_path, tmp_path / "list.txt", tmp_path)
    (tmp_path / "cat2").mkdir()
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(PersresError, match="pip install --no-deps efficientnet-lite-pytorch"):
        real_photos.measure_photos(tmp_path, tmp_path / "list.txt", tmp_path)


def test_the_settings_are_typed():
    with pytest.raises(ValueError, match="templates"):
        ZeroShotClassSettings(templates=())
    with pytest.raises(ValueError, match="extra"):
        ZeroShotClassSettings(photos=3)
