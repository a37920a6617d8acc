"""Training of the mini world: shards, captions of nameless objects, checkpoints for another clone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from persres.errors import PersresError
from persres.experiments.miniworld_training import shards
from persres.experiments.miniworld_training.captions import is_nameless, nameless_caption
from persres.experiments.miniworld_training.checkpoint import FILE, SHIPPED, restore_checkpoint, save_checkpoint
from persres.experiments.miniworld_training.loop import Budget, fit
from persres.experiments.miniworld_training.recipe import RECIPE
from persres.experiments.miniworld_training.scenes import BALANCED, scene_at
from persres.experiments.miniworld_training.unet import SCHEDULER, TrainingData, loss_weights, new_unet, v_loss
from persres.experiments.miniworld_training.vae import new_vae
from persres.miniworld.concepts import CONCEPTS
from persres.miniworld.identities import NAMELESS
from persres.miniworld.shapes import SHAPES
from persres.miniworld.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, RARE_TOKENS, words
from persres.units.checkpoints import read_tensors

SMALL = replace(
    RECIPE, shard=40, balanced_shards=2, nameless_shards=1, unet_channels=(8, 8, 8), vae_channels=(12, 12, 12)
)


def scenes(split: str, count: int = 600):
    return [scene_at(RECIPE, split, index)[0] for index in range(count)]


def test_shards_are_balanced():
    shown = scenes(BALANCED, 2000)
    assert np.mean([scene.second is not None for scene in shown]) == pytest.approx(RECIPE.shard_second, abs=0.04)
    for style, share in zip(RECIPE.styles, RECIPE.shard_style_weights, strict=True):
        assert np.mean([scene.style == style for scene in shown]) == pytest.approx(share, abs=0.04)
    assert not any(is_nameless(scene.subject) for scene in shown)


def test_nameless_scenes_cover_every_concept():
    """Every part of every class in other colours, dark ones too, up to as many as a concept has; every concept's own look never."""
    shown = scenes(NAMELESS, 4000)
    recoloured = {(scene.subject.kind, name) for scene in shown for name, _ in scene.subject.parts}
    assert recoloured == {(kind, name) for kind in RECIPE.kinds for name, _, _ in SHAPES[kind]}
    assert max(len(scene.subject.parts) for scene in shown) >= max(len(c.appearance.parts) for c in CONCEPTS)
    looks = {scene.subject for scene in shown} | {scene.second for scene in shown if scene.second}
    assert not looks & {concept.appearance for concept in CONCEPTS}
    seconds = [is_nameless(scene.second) for scene in shown if scene.second is not None]
    assert 0.15 < np.mean(seconds) < 0.45


def test_captions_of_nameless_objects_never_say_what_makes_them():
    rng, named = np.random.default_rng(0), []
    for scene in scenes(NAMELESS):
        caption = nameless_caption(scene, rng)
        assert set(caption.split()) <= set(words())
        first = caption.split(" next to ")[0].split()
        assert sum(word in RARE_TOKENS for word in first) == 1 and scene.subject.kind in first
        colours = {word for word in first if word in COLOURS}
        assert colours <= {scene.subject.colour} and {word for word in first if word in PATTERNS} <= {
            scene.subject.pattern
        }
        named.append(bool(colours))
        if scene.second is not None and is_nameless(scene.second):
            second = caption.split(" next to ")[1].split()
            assert sum(word in RARE_TOKENS for word in second) == 1
            assert not set(second) & set(first) & set(RARE_TOKENS), "two objects, two names"
        assert any(caption.endswith(phrase) for phrase in BACKGROUNDS.values()) or scene.background not in caption
    assert 0.15 < np.mean(named) < 0.35


def test_shards_hold_their_scenes_and_are_rendered_once(tmp_path):
    first, second = (
        np.load(shards.rendered_shard(SMALL, (BALANCED, number), tmp_path, workers=1)) for number in (0, 1)
    )
    assert first.shape == (40, 64, 64, 3) and first.dtype == np.uint8 and not np.array_equal(first, second)
    assert len(shards.scenes_of(SMALL, BALANCED, 1)) == 40
    assert shards.scenes_of(SMALL, BALANCED, 1)[0] == scene_at(SMALL, BALANCED, 40)[0]
    vae = new_vae(SMALL)
    path = shards.encoded_shard(SMALL, (BALANCED, 0), vae, tmp_path)
    latents = np.load(path)
    assert latents.shape == (40, RECIPE.latent_channels, 16, 16) and latents.dtype == np.float16
    stamp = path.stat().st_mtime_ns
    shards.encoded_shard(SMALL, (BALANCED, 0), vae, tmp_path)
    assert path.stat().st_mtime_ns == stamp and not list(tmp_path.rglob("*partial*"))


def test_shards_of_both_kinds_come_in_turn():
    assert shards.shards_of(SMALL) == [(BALANCED, 0), (NAMELESS, 0), (BALANCED, 1)]


def test_a_third_of_the_images_is_nameless(tmp_path):
    for shard in shards.shards_of(SMALL):
        shards.encoded_shard(SMALL, shard, new_vae(SMALL), tmp_path)
    data = TrainingData(SMALL, tmp_path)
    rng = np.random.default_rng(0)
    latents, captions = data.sample(rng, 3000)
    assert latents.shape == (3000, RECIPE.latent_channels, 16, 16) and latents.dtype == torch.float32
    assert np.mean([not caption for caption in captions]) == pytest.approx(0.1, abs=0.02)
    rows = np.searchsorted(data.cumulated, rng.random(20_000))
    assert data.nameless[rows].mean() == pytest.approx(SMALL.unet_nameless, abs=0.015)


def test_the_data_is_what_was_encoded_so_far(tmp_path):
    shards.encoded_shard(SMALL, (BALANCED, 0), new_vae(SMALL), tmp_path)
    shards.encoded_shard(SMALL, (NAMELESS, 0), new_vae(SMALL), tmp_path)
    assert len(TrainingData(SMALL, tmp_path).scenes) == 80


def test_loss_weights_are_min_snr():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SCHEDULER)
    weights = loss_weights(scheduler, torch.arange(1000))
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    assert weights.mean() == pytest.approx(1)
    high = snr > 5  # above the limit: 5 / (SNR + 1)
    torch.testing.assert_close(
        weights[high] * (snr[high] + 1), torch.full_like(snr[high], float(weights[high][0] * (snr[high][0] + 1)))
    )
    torch.testing.assert_close(weights[~high] / weights[high][0], (snr / (snr + 1))[~high] * (snr[high][0] + 1) / 5)


def test_a_perfect_prediction_has_no_loss():
    from diffusers import DDIMScheduler

    scheduler, z = DDIMScheduler(**SCHEDULER), torch.randn(4, RECIPE.latent_channels, 16, 16)

    class Oracle(torch.nn.Module):
        """Knows the clean latents."""

        def forward(self, noisy, t, encoder_hidden_states):
            alpha = scheduler.alphas_cumprod[t][:, None, None, None]
            noise = (noisy - alpha.sqrt() * z) / (1 - alpha).sqrt()
            return type("Out", (), {"sample": alpha.sqrt() * noise - (1 - alpha).sqrt() * z})

    assert v_loss(Oracle(), scheduler, z, torch.zeros(4, 24, 96)) < 1e-4
    assert v_loss(new_unet(SMALL), scheduler, z, torch.zeros(4, 24, 96)) > 0.05


@pytest.fixture
def trained(tmp_path):
    """A work folder after a few steps of a toy U-Net, and the function that goes on with it."""

    def train(work, steps: int) -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        loss = lambda step, seed: model(torch.randn(8, 4)).pow(2).mean()  # noqa: E731
        return fit("unet", model, loss, Budget(steps, 1e-2, 3, decay_from=1.0), work, 0)

    work = tmp_path / "work"
    train(work, 6)
    (work / "sd" / "vae").mkdir(parents=True)
    (work / "sd" / "vae" / "config.json").write_text("{}")
    return work, train


@pytest.fixture
def weights(tmp_path):
    """The shipped parts that a training does not change."""
    for name in SHIPPED:
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text(name)
    return tmp_path / "weights"


def test_another_clone_goes_on_from_a_saved_checkpoint(trained, weights, tmp_path):
    work, train = trained
    save_checkpoint(work, tmp_path / "saved")
    whole, small = (path.stat().st_size for path in (work / FILE, tmp_path / "saved" / FILE))
    assert small < whole
    restore_checkpoint(tmp_path / "saved", weights, tmp_path / "other")
    before, steps = read_tensors(work / FILE), read_tensors(tmp_path / "other" / FILE)
    assert steps[1]["step"] == before[1]["step"] == "6"
    for key, value in steps[0].items():
        torch.testing.assert_close(value, before[0][key], atol=1e-3, rtol=1e-3)
    assert (tmp_path / "other" / "sd" / "vae" / "config.json").exists()
    assert (tmp_path / "other" / "sd" / "tokenizer" / "config.json").read_text() == "sd/tokenizer"
    assert train(tmp_path / "other", 20).weight.abs().mean() < before[0]["param/weight"].abs().mean()


def test_without_optimizer_state_the_rate_rises_again(trained, weights, tmp_path, monkeypatch):
    work, train = trained
    save_checkpoint(work, tmp_path / "saved")
    restore_checkpoint(tmp_path / "saved", weights, tmp_path / "other")
    used: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(work, 12)
    assert used == pytest.approx([1e-2] * 6), "with its optimizer's state, training goes on as it was"
    used.clear()
    train(tmp_path / "other", 12)
    assert used == pytest.approx([1e-2 / 3, 2e-2 / 3, *[1e-2] * 4])


def test_what_is_there_is_left_alone(trained, weights, tmp_path):
    work, train = trained
    save_checkpoint(work, tmp_path / "saved")
    train(work, 9)
    restore_checkpoint(tmp_path / "saved", weights, work)
    assert read_tensors(work / FILE)[1]["step"] == "9"


def test_checkpoints_that_are_not_there(tmp_path, weights):
    with pytest.raises(PersresError, match="train the U-Net first"):
        save_checkpoint(tmp_path / "work", tmp_path / "saved")
    with pytest.raises(PersresError, match="not finished yet"):
        restore_checkpoint(tmp_path / "saved", weights, tmp_path / "work")
    assert not (tmp_path / "work").exists() and not (tmp_path / "saved").exists()
