"""The mini U-Net: ``UNet2DConditionModel`` on 16×16 latents, conditioned on CLIP's text encoder.

It predicts v, as Stable Diffusion 2.1: with few training images, an ε-loss gives the noisy timesteps, which decide the class, almost no
weight.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from persres.experiments.miniworld_training.captions import nameless_caption, random_caption
from persres.experiments.miniworld_training.loop import Budget, fit, training_device
from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.shards import latents_path, scenes_of, shards_of
from persres.miniworld.identities import NAMELESS
from persres.miniworld.render import Scene
from persres.seeding import seed_from

PAUSE = timedelta(days=1)  # workers may be stopped for so long, while something else is timed
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
        in_channels=recipe.latent_channels,
        out_channels=recipe.latent_channels,
        block_out_channels=recipe.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _average_over_workers(model: torch.nn.Module) -> None:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    torch._foreach_copy_(gradients, torch._utils._unflatten_dense_tensors(flat, gradients))


class TrainingData:
    """Latents and captions of all encoded shards; random batches of them.

    A share ``Recipe.unet_nameless`` of the images is of nameless shards, in whose captions a rare token stands for the subject's parts and marks.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        shards = [shard for shard in shards_of(recipe) if latents_path(folder, shard).exists()]
        self.latents = [np.load(latents_path(folder, shard), mmap_mode="r") for shard in shards]
        self.scenes = [scene for shard in shards for scene in scenes_of(recipe, *shard)]
        self.nameless = np.repeat([split == NAMELESS for split, _ in shards], recipe.shard)
        chance = np.array([_favour(recipe, scene) for scene in self.scenes])
        for kind, share in ((self.nameless, recipe.unet_nameless), (~self.nameless, 1 - recipe.unet_nameless)):
            chance[kind] *= share / chance[kind].sum()
        self.cumulated = np.cumsum(chance / chance.sum())

    def sample(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, list[str]]:
        """Return random latents [count, channels, 16, 16] and captions, some of them empty."""
        rows = np.minimum(np.searchsorted(self.cumulated, rng.random(count)), len(self.scenes) - 1)
        size = len(self.latents[0])
        z = torch.from_numpy(np.stack([self.latents[row // size][row % size] for row in rows])).float()
        return z, ["" if rng.random() < DROP_CAPTION else self._caption(row, rng) for row in rows]

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        return (nameless_caption if self.nameless[row] else random_caption)(self.scenes[row], rng)


def _favour(recipe: Recipe, scene: Scene) -> float:
    """Factor of a scene's sampling probability."""
    return float(np.prod([factor for kind, factor in recipe.unet_favoured if kind == scene.subject.kind]))


def loss_weights(scheduler: DDIMScheduler, t: torch.Tensor, limit: float = 5.0) -> torch.Tensor:
    """Min-SNR weights of a v-loss (Hang et al. 2023): min(SNR, limit) / (SNR + 1), scaled to a mean of 1 over all timesteps, [n]."""
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(max=limit) / (snr + 1)
    return (weights / weights.mean())[t]


def _worker(rank: int, world: int, recipe: Recipe, folder: Path, meeting: str) -> None:
    """One worker; several average their gradients, so their batches add up."""
    os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    device = training_device()
    if world > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=PAUSE)
    data, scheduler = TrainingData(recipe, folder), DDIMScheduler(**SCHEDULER)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder", dtype=torch.float32).to(device)
    unet = new_unet(recipe).to(device).train()

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed_from(seed, rank))
        torch.manual_seed(seed_from(seed, rank, "noise"))
        z, captions = data.sample(rng, recipe.unet_batch)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = text(ids.to(device)).last_hidden_state
        return v_loss(unet, scheduler, z.to(device), states)

    budget = Budget(recipe.unet_steps, recipe.unet_lr, 300, recipe.unet_decay_from, ema=recipe.unet_ema, save_every=100)
    average = _average_over_workers if world > 1 else None
    ends = ("conv_in", "conv_out")  # of the U-Net: not between two hidden layers, for which Muon is meant
    fit("unet", unet, loss, budget, folder, recipe.seed, average_gradients=average, main_worker=rank == 0, muon=ends)
    if rank == 0:
        unet.cpu().half().save_pretrained(folder / "sd" / "unet")


def v_loss(unet: UNet2DConditionModel, scheduler: DDIMScheduler, z: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Weighted v-prediction loss of latents [n, channels, 16, 16] at random timesteps, given text states [n, tokens, width]."""
    t = torch.randint(0, 1000, (len(z),))
    noise = torch.randn(z.shape).to(z.device)
    noisy, target = scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)
    out = unet(noisy, t.to(z.device), encoder_hidden_states=states).sample
    errors = (out - target).square().mean((1, 2, 3))
    return (loss_weights(scheduler, t).to(z.device) * errors).mean()


def train_unet(recipe: Recipe, folder: Path) -> None:
    """Train with ``recipe.unet_workers`` processes on the CPU, or one on a GPU; resumes."""
    world = recipe.unet_workers if training_device().type == "cpu" else 1
    if world == 1:
        _worker(0, 1, recipe, folder, "")
        return
    meeting = folder / "workers.meet"
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_worker, (world, recipe, folder, f"file://{meeting.resolve()}"), nprocs=world)
