"""The mini world: renderer, captions, concepts, tokenizer, text tower, word list."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from persres.datasets.wordnet import COUNT, load_candidates, load_nouns
from persres.errors import PersresError
from persres.experiments.miniworld_training.captions import full_caption, random_caption
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import scene_at
from persres.experiments.miniworld_training.tokenizer import write_tokenizer
from persres.miniworld.concepts import CONCEPTS, concept_prompts, views
from persres.miniworld.identities import random_identity
from persres.miniworld.render import Appearance, Scene, render
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, KINDS, PATTERNS, STYLES, words
from persres.prompts import PROMPT_GROUPS


def draw(scene: Scene, seed: int = 0):
    return render(scene, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_in_every_appearance_has_its_mask(kind):
    for number, (colour, pattern) in enumerate(zip(COLOURS, PATTERNS * 2, strict=True)):
        rendered = draw(Scene(Appearance(kind, colour, pattern), list(BACKGROUNDS)[number]), number)
        assert rendered.image.size == (64, 64)
        assert 0.06 < rendered.masks[0].mean() < 0.7


def test_the_mask_is_where_the_object_is():
    """The same scene in two colours differs inside the mask and nowhere else."""
    red, blue = (draw(Scene(Appearance("car", colour), "city")) for colour in ("red", "blue"))
    changed = (np.asarray(red.image).astype(int) != np.asarray(blue.image)).any(2)
    mask = red.masks[0]
    assert np.array_equal(mask, blue.masks[0])
    grown = np.pad(mask, 1)
    grown = np.stack([np.roll(grown, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1)]).any(0)[1:-1, 1:-1]
    assert not (changed & ~grown).any()
    assert changed[mask].mean() > 0.4


def test_two_objects_have_disjoint_masks_and_both_are_seen():
    for seed in range(12):
        rendered = draw(Scene(Appearance("mug", "red"), "grass", second=Appearance("ball", "blue")), seed)
        assert not (rendered.masks[0] & rendered.masks[1]).any()
        assert rendered.masks.mean((1, 2)).min() > 0.03


@pytest.mark.parametrize("style", STYLES)
def test_styles_differ_and_seeds_repeat(style):
    scene = Scene(Appearance("cat", "orange"), "wood", style)
    assert np.array_equal(np.asarray(draw(scene).image), np.asarray(draw(scene).image))
    assert not np.array_equal(np.asarray(draw(scene).image), np.asarray(draw(scene, 1).image))
    if style != "photo":
        photo = np.asarray(draw(Scene(Appearance("cat", "orange"), "wood")).image).astype(int)
        assert np.abs(photo - np.asarray(draw(scene).image)).mean() > 5


@pytest.mark.parametrize(
    "wrong",
    [
        Appearance("horse", "red"),
        Appearance("mug", "red", parts=(("wing", "red"),)),
        Appearance("mug", "red", emblem=("skull", "red")),
    ],
)
def test_unknown_appearances_are_refused(wrong):
    with pytest.raises(ValueError, match=r"unknown|no part"):
        draw(Scene(wrong, "beach"))


def test_concepts_are_beyond_captions_and_distinct():
    assert len(CONCEPTS) >= 8
    assert len({c.name for c in CONCEPTS}) == len({c.appearance for c in CONCEPTS}) == len(CONCEPTS)
    for concept in CONCEPTS:
        assert concept.appearance.parts or concept.appearance.emblem or concept.appearance.band
        assert 1 <= len(concept.backgrounds) <= 2
        assert concept.appearance.kind in RECIPE.kinds
        images = [np.asarray(v.image) for v in (*views(concept, "reference", 5, 0), *views(concept, "held_out", 3, 0))]
        assert len({p.tobytes() for p in images}) == 8


def test_training_scenes_never_show_a_concept():
    appearances = {c.appearance for c in CONCEPTS}
    for index in range(500):
        scene, _ = scene_at(RECIPE, "train", index)
        assert scene.subject not in appearances and not scene.subject.parts and scene.subject.emblem is None
        assert random_identity(np.random.default_rng(index)) not in appearances


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda c: c.name)
def test_twenty_prompts_five_of_each_group(concept):
    prompts = concept_prompts(concept.appearance.kind, concept.backgrounds)
    assert [g for g, _ in prompts] == [g for g in PROMPT_GROUPS for _ in range(5)]
    assert len({text for _, text in prompts}) == 20
    assert all(text.count("{}") == 1 for _, text in prompts)
    known = {BACKGROUNDS[b] for b in concept.backgrounds}
    assert not any(phrase in text for group, text in prompts if group == "background" for phrase in known)
    assert {word for _, text in prompts for word in text.replace("{}", concept.appearance.kind).split()} <= set(words())


def test_captions_say_what_is_shown_in_known_words():
    rng = np.random.default_rng(0)
    for index in range(300):
        scene, _ = scene_at(RECIPE, "val", index)
        full, loose = full_caption(scene), random_caption(scene, rng)
        assert set(full.split()) | set(loose.split()) <= set(words())
        assert full.startswith(STYLES[scene.style]) and full.endswith(BACKGROUNDS[scene.background])
        assert f"{scene.subject.kind}" in loose
        assert (scene.second is not None) == ("next to" in loose)


def test_every_word_is_one_token_and_unknown_words_do_not_fail(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path, 24)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words())
    assert len(tokenizer("zebra", add_special_tokens=False).input_ids) == 5
    longest = "a pencil sketch of a red striped <v*> mug next to a blue striped ball in front of a brick wall"
    assert len(longest.split()) + 2 <= RECIPE.prompt_length
    assert tokenizer.eos_token_id == len(tokenizer) - 1, "open_clip pools at the highest id"


def test_the_text_tower_gives_the_hidden_states_of_open_clip(tmp_path):
    from persres.experiments.miniworld_training.clip import new_clip, write_empty
    from persres.experiments.miniworld_training.folders import text_tower

    write_empty(RECIPE, tmp_path)
    clip, tokenize = new_clip(tmp_path, 3)
    clip.eval()
    tower = text_tower(clip, json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"])
    ids = tokenize(["a photo of a red mug", "a cat"])
    with torch.no_grad():
        theirs = clip.transformer(clip.token_embedding(ids) + clip.positional_embedding, attn_mask=clip.attn_mask)
        torch.testing.assert_close(tower(ids).last_hidden_state, clip.ln_final(theirs), atol=1e-5, rtol=1e-4)


def test_folding_the_latent_scale_changes_no_image():
    from persres.experiments.miniworld_training.vae import new_vae, normalise

    images = np.stack([np.asarray(draw(scene_at(RECIPE, "val", i)[0], i).image) for i in range(32)])
    vae = new_vae(RECIPE).eval()
    from persres.experiments.miniworld_training.loop import images_to_tensor

    x = images_to_tensor(images[:4])
    with torch.no_grad():
        before, std = vae.decode(vae.encode(x).latent_dist.mean).sample, vae.encode(x).latent_dist.std
        raw = vae.encode(images_to_tensor(images)).latent_dist.mean.std((0, 2, 3))
        normalise(vae, images)
        latents = vae.encode(images_to_tensor(images)).latent_dist
        torch.testing.assert_close(vae.decode(vae.encode(x).latent_dist.mean).sample, before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(latents.mean.mean((0, 2, 3)), torch.zeros(RECIPE.latent_channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.mean.std((0, 2, 3)), torch.ones(RECIPE.latent_channels), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std[:4] * raw[:, None, None], std, atol=1e-4, rtol=1e-3)


def test_interrupted_training_of_a_mini_model_goes_on_to_the_same_weights(tmp_path):
    from persres.experiments.miniworld_training.loop import Budget, fit

    def learn(folder, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss(step: int, seed: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return model(torch.randn(8, 4)).pow(2).mean()

        return fit("toy", model, loss, Budget(12, 1e-2, 2, save_every=4), folder, 0).weight.detach().clone()

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "broken", stop=6)
    assert torch.equal(learn(tmp_path / "broken"), whole)


@pytest.mark.parametrize(("step", "value"), [(1, "nan"), (5, "inf"), (7, "nan")])
def test_training_of_a_mini_model_that_diverges_overwrites_no_checkpoint(tmp_path, step, value):
    from persres.experiments.miniworld_training.loop import Budget, fit
    from persres.units.checkpoints import read_tensors

    model = torch.nn.Linear(4, 1)

    def loss(at: int, seed: int) -> torch.Tensor:
        return model(torch.randn(8, 4)).pow(2).mean() * (float(value) if at == step else 1.0)

    with pytest.raises(
        PersresError, match=r"training of toy diverged: .* at step [48] of 8 with learning rate 0.01; set"
    ):
        fit("toy", model, loss, Budget(8, 1e-2, 2, save_every=4), tmp_path, 0)
    saved = tmp_path / "toy.safetensors"
    assert saved.exists() == (step > 3)
    if step > 3:
        tensors, metadata = read_tensors(saved)
        assert metadata["step"] == "4" and all(t.isfinite().all() for t in tensors.values())


def test_wordnet_holds_all_noun_lemmas(tmp_path):
    nouns = load_nouns()
    assert len(nouns) == COUNT == 117_798 == len(set(nouns))
    assert {"dog", "coffee mug", "teddy", "sunglasses"} <= set(nouns)
    assert load_candidates("wordnet") == nouns
    (tmp_path / "n.txt").write_text("mug\n\ncat\n")
    assert load_candidates(str(tmp_path / "n.txt")) == ["mug", "cat"]
