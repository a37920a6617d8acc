"""The mini denoiser: ``UNet2DConditionModel`` on 16×16×4 latents, conditioned on CLIP's text tower.

It predicts v, as Stable Diffusion 2.1 does: with so few views, an ε-loss leaves the noisy steps, in
which the class is decided, almost unweighted.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from persres.miniworld.captions import random_caption
from persres.miniworld.loop import Budget, fit, images_to_tensor, training_device
from persres.miniworld.recipe import Recipe
from persres.miniworld.scenes import load_scenes
from persres.seeding import seed_from

DROP_CAPTION = 0.1  # share of captions left empty, for classifier-free guidance

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def new_unet(recipe: Recipe) -> UNet2DConditionModel:
    """Fresh weights. Cross-attention at 16×16 and 8×8, where it can localise; plain at 4×4."""
    torch.manual_seed(recipe.seed)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=8,
    )


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: np.ndarray, path: Path) -> np.ndarray:
    """Posterior means of all pictures and their mirror images, fp16 [2, n, 4, 16, 16], cached."""
    if not path.exists():
        both = []
        for flip in (False, True):
            chunks = [images_to_tensor(c) for c in np.array_split(images, max(1, len(images) // 250))]
            both.append(np.concatenate([vae.encode(c.flip(3) if flip else c).latent_dist.mean.numpy() for c in chunks]))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.stack(both).astype(np.float16))
        partial.replace(path)
    return np.load(path)


def _average_over_workers(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def _train(rank: int, world: int, recipe: Recipe, folder: Path, meeting: str) -> None:
    """One worker; with several, gradients are averaged, so their batches add up."""
    os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    device = training_device()
    if world > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    scenes = load_scenes(recipe, "train", recipe.scenes, folder / "data").scenes
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder", dtype=torch.float32).to(device)
    scheduler = DDIMScheduler(**SCHEDULER)
    unet = new_unet(recipe).to(device)

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed_from(seed, rank))
        torch.manual_seed(seed_from(seed, rank, "noise"))
        rows = np.sort(rng.integers(len(scenes), size=recipe.unet_batch))
        flips = rng.integers(2, size=recipe.unet_batch)
        z = torch.from_numpy(np.stack([latents[f, r] for f, r in zip(flips, rows, strict=True)])).float()
        captions = ["" if rng.random() < DROP_CAPTION else random_caption(scenes[r], rng) for r in rows]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t = torch.randint(0, 1000, (len(z),))
        noise = torch.randn_like(z)
        noisy, target = scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)
        with torch.no_grad():
            states = text(ids.to(device)).last_hidden_state
        out = unet(noisy.to(device), t.to(device), encoder_hidden_states=states).sample
        return F.mse_loss(out, target.to(device))

    budget = Budget(recipe.unet_steps, recipe.unet_lr, 300, recipe.unet_decay_from, ema=recipe.unet_ema)
    average = _average_over_workers if world > 1 else None
    fit("unet", unet, loss, budget, folder, recipe.seed, average_gradients=average, chief=rank == 0)
    if rank == 0:
        unet.cpu().half().save_pretrained(folder / "sd" / "unet")


def train_unet(recipe: Recipe, folder: Path) -> None:
    """Train with ``recipe.unet_workers`` processes on the CPU, or one on a GPU; resumes."""
    world = recipe.unet_workers if training_device().type == "cpu" else 1
    if world == 1:
        _train(0, 1, recipe, folder, "")
        return
    meeting = folder / "workers.meet"
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_train, (world, recipe, folder, f"file://{meeting.resolve()}"), nprocs=world)
