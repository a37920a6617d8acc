"""Mistakes that were once seeded in the numerics and that no other unit test caught."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from persres.methods.ours import Ours
from persres.metrics.clip_scores import clip_text_score
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.training.batches import EncodedImages
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank
from persres.units.files import write_atomic


class Recorder(DDIMScheduler):
    """A scheduler that keeps the latents that training adds noise to."""

    def add_noise(self, original_samples, noise, timesteps):
        self.__dict__.setdefault("seen", []).append(original_samples.clone())
        return super().add_noise(original_samples, noise, timesteps)


def latents_of(unet, mean: torch.Tensor, std: float, steps: int, batch: int) -> torch.Tensor:
    """The latents of so many steps, [steps · batch, c, h, w]."""
    data = EncodedConcept("mug", mean, torch.full_like(mean, std), torch.zeros(6, 24))
    settings, scheduler = Ours(batch_size=batch), Recorder()
    bank = new_bank(find_targets(unet), [data], settings)
    with torch.no_grad():
        for step in range(steps):
            ResidualLoss(unet, scheduler, bank, settings).at_step([data], step)
    return torch.cat(scheduler.seen)


def test_training_samples_the_autoencoders_posterior(unet):
    latents = latents_of(unet, torch.full((2, 4, 8, 8), 5.0), 3.0, steps=8, batch=2)
    noise = (latents - 5) / 3
    assert noise.mean().abs() < 0.1 and noise.std() == pytest.approx(1, abs=0.1)
    assert len({round(float(z.sum()), 3) for z in noise}) == 16, "every step and sample has other noise"


def test_other_methods_sample_the_posterior_too():
    images = EncodedImages([], torch.full((2, 4, 8, 8), 5.0), torch.full((2, 4, 8, 8), 3.0))
    noise = (images.sample(torch.tensor([0, 1, 0, 1]), torch.Generator().manual_seed(0)) - 5) / 3
    assert noise.mean().abs() < 0.1 and noise.std() == pytest.approx(1, abs=0.1)


def test_photos_come_in_another_order_in_every_epoch(unet):
    photos = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 4, 8, 8).contiguous()
    order = latents_of(unet, photos, 0.0, steps=12, batch=4)[:, 0, 0, 0].long().view(6, 8).tolist()
    assert all(sorted(epoch) == list(range(8)) for epoch in order), "every photo once in an epoch"
    assert len({tuple(epoch) for epoch in order}) == 6


def test_strength_scales_the_residual(unet):
    draw = torch.Generator().manual_seed(0)
    bank = ResidualBank(find_targets(unet)).initialise(0, "normal", 1.0, draw)
    x, rows = torch.randn(2, bank.targets[0].width_in, 4, 4, generator=draw), torch.zeros(2, dtype=torch.long)
    whole, norms = bank.added(0, x, x * 0, rows).detach().clone(), bank.relative_norms(unet)
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(bank.scaled(0.6).added(0, x, x * 0, rows), 0.6 * whole)
    for path, norm in bank.relative_norms(unet).items():
        assert norm == pytest.approx(0.6 * norms[path], rel=1e-5)


def test_clip_text_of_opposite_directions_is_zero():
    images = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), dim=1)
    texts = F.normalize(torch.tensor([[-1.0, 0.0], [-1.0, -0.5], [1.0, 0.0]]), dim=1)
    assert clip_text_score(images, texts).tolist() == [0.0, 0.0, 2.5]


def test_a_file_reaches_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Without it a power cut can leave the name with no data."""
    path, calls, sync, replace = tmp_path / "a.bin", [], os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        sync(descriptor)

    def rename(source, target) -> None:
        calls.append(("replace", os.stat(source).st_ino, os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_atomic(path, b"data")
    inode = path.stat().st_ino
    assert calls == [("fsync", inode, 4), ("replace", inode, 4)]
    assert path.read_bytes() == b"data" and list(tmp_path.iterdir()) == [path]
