"""The mini U-Net: ``UNet2DConditionModel`` on 16×16×4 latents, conditioned on CLIP's text encoder.

It predicts v, as Stable Diffusion 2.1: with few training images, an ε-loss gives the noisy timesteps, which decide the class, almost no
weight.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from persres.experiments.miniworld_training.captions import nameless_caption, random_caption
from persres.experiments.miniworld_training.loop import Budget, fit, images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.scenes import identity_scenes, load_scenes
from persres.miniworld.render import Scene
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
    """Return a U-Net with fresh weights: cross-attention at 16×16 and 8×8, where it can localise, none at 4×4."""
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
    """Return posterior means of all images and their mirror images, fp16 [2, n, 4, 16, 16], cached at ``path``."""
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


@dataclass(frozen=True)
class PhaseData:
    """Training data of a phase: latents fp16 [2, n, 4, 16, 16] (plain and mirrored) and n scenes.

    ``chance`` [n]: sampling probabilities. ``nameless`` bool [n]: unnamed subjects, whose caption is a rare token.
    """

    latents: np.ndarray
    scenes: list[Scene]
    chance: np.ndarray
    nameless: np.ndarray

    def sample(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, list[str]]:
        """Return random latents [count, 4, 16, 16] and captions, some of them empty."""
        rows = np.sort(rng.choice(len(self.scenes), size=count, p=self.chance))
        flips = rng.integers(2, size=count)
        z = torch.from_numpy(np.stack([self.latents[f, r] for f, r in zip(flips, rows, strict=True)])).float()
        return z, ["" if rng.random() < DROP_CAPTION else self._caption(r, rng) for r in rows]

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        return (nameless_caption if self.nameless[row] else random_caption)(self.scenes[row], rng)


def first_phase_data(recipe: Recipe, folder: Path) -> PhaseData:
    """Return all scenes with equal probability."""
    scenes = load_scenes(recipe, "train", recipe.scenes, folder / "data").scenes
    count = len(scenes)
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    return PhaseData(latents, scenes, np.full(count, 1 / count), np.zeros(count, dtype=bool))


def second_phase_data(recipe: Recipe, folder: Path) -> PhaseData:
    """Return more of the difficult scenes, and unnamed subjects with rare tokens. Without them the U-Net has never seen an emblem or a
    recoloured part, which a residual of rank 2 cannot add."""
    first = first_phase_data(recipe, folder)
    scenes = [scene for index in range(recipe.identities) for scene in identity_scenes(recipe, index)[0]]
    nameless = np.load(folder / "latents-identities.npy")
    named = np.array([_favour(recipe, scene) for scene in first.scenes])
    chance = np.concatenate(
        [
            named / named.sum() * (1 - recipe.unet_nameless),
            np.full(len(scenes), recipe.unet_nameless / len(scenes)),
        ]
    )
    return PhaseData(
        np.concatenate([first.latents, nameless], axis=1),
        first.scenes + scenes,
        chance / chance.sum(),
        np.arange(len(chance)) >= len(named),
    )


def _favour(recipe: Recipe, scene: Scene) -> float:
    """Factor of a scene's sampling probability."""
    shown = {scene.subject.kind, scene.style, "second" if scene.second is not None else ""}
    return float(np.prod([factor for what, factor in recipe.unet_favoured if what in shown]))


def _train(rank: int, world: int, recipe: Recipe, folder: Path, meeting: str, second: bool) -> None:
    """One worker; several average their gradients, so their batches add up."""
    os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    device = training_device()
    if world > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    data = (second_phase_data if second else first_phase_data)(recipe, folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder", dtype=torch.float32).to(device)
    scheduler = DDIMScheduler(**SCHEDULER)
    unet = new_unet(recipe)
    if second:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet-first", torch_dtype=torch.float32)
    unet = unet.to(device).train()

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed_from(seed, rank))
        torch.manual_seed(seed_from(seed, rank, "noise"))
        z, captions = data.sample(rng, recipe.unet_batch)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t = torch.randint(0, 1000, (len(z),))
        noise = torch.randn_like(z)
        noisy, target = scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)
        with torch.no_grad():
            states = text(ids.to(device)).last_hidden_state
        out = unet(noisy.to(device), t.to(device), encoder_hidden_states=states).sample
        return F.mse_loss(out, target.to(device))

    budget = _budget(recipe, second)
    average = _average_over_workers if world > 1 else None
    name = "unet-second" if second else "unet"
    fit(name, unet, loss, budget, folder, recipe.seed, average_gradients=average, main_worker=rank == 0)
    if rank == 0:
        unet.cpu().half().save_pretrained(folder / ("sd/unet" if second else "unet-first"))


def _budget(recipe: Recipe, second: bool) -> Budget:
    if second:
        decay = recipe.unet_second_decay_from
        return Budget(recipe.unet_second_steps, recipe.unet_second_lr, 100, decay, ema=recipe.unet_ema)
    return Budget(recipe.unet_steps, recipe.unet_lr, 300, recipe.unet_decay_from, ema=recipe.unet_ema)


def _phase(recipe: Recipe, folder: Path, second: bool) -> None:
    world = recipe.unet_workers if training_device().type == "cpu" else 1
    if world == 1:
        _train(0, 1, recipe, folder, "", second)
        return
    meeting = folder / "workers.meet"
    meeting.unlink(missing_ok=True)
    arguments = (world, recipe, folder, f"file://{meeting.resolve()}", second)
    torch.multiprocessing.spawn(_train, arguments, nprocs=world)


def train_unet(recipe: Recipe, folder: Path) -> None:
    """Run both phases with ``recipe.unet_workers`` processes on the CPU, or one on a GPU; resumes."""
    if not (folder / "unet-first" / "config.json").exists():
        _phase(recipe, folder, second=False)
    _phase(recipe, folder, second=True)
