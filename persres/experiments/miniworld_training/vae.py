"""The mini autoencoder: ``AutoencoderKL``, factor 4, 64×64×3 <-> 16×16×8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from persres.experiments.miniworld_training.loop import Budget, fit, images_to_tensor, training_device
from persres.experiments.miniworld_training.recipe import Recipe

CONFIG = {  # the rest: Recipe.vae_channels, Recipe.latent_channels
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 12,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}


def new_vae(recipe: Recipe) -> AutoencoderKL:
    """Return an autoencoder with fresh weights and a narrow posterior, so that its noise does not hide the signal at the start."""
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(**CONFIG, block_out_channels=recipe.vae_channels, latent_channels=recipe.latent_channels)
    with torch.no_grad():
        vae.quant_conv.weight[recipe.latent_channels :] = 0
        vae.quant_conv.bias[recipe.latent_channels :] = -7.0
    return vae


def train_vae(recipe: Recipe, images: np.ndarray, folder: Path) -> AutoencoderKL:
    """Train on uint8 [n, 64, 64, 3]; return an autoencoder with normalised latents (mean 0, std 1 per channel)."""
    device = training_device()
    vae = new_vae(recipe).to(device)
    whole_from = recipe.vae_steps - recipe.vae_whole_steps

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        batch = recipe.vae_batch if step < whole_from else recipe.vae_whole_batch
        x = images_to_tensor(images[rng.integers(len(images), size=batch)]).to(device)
        x = x.flip(3) if rng.random() < 0.5 else x
        if step < whole_from:  # convolutions learn the same from crops in a quarter of the time
            top, left = rng.integers(0, 33, 2)
            x = x[:, :, top : top + 32, left : left + 32]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        edges = F.l1_loss(y.diff(dim=3), x.diff(dim=3)) + F.l1_loss(y.diff(dim=2), x.diff(dim=2))
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * edges + 1e-5 * posterior.kl().mean() / 1024

    fit("vae", vae, loss, Budget(recipe.vae_steps, 1.2e-3, decay_from=0.4, ema=0.995), folder, recipe.seed)
    return polish_decoder(recipe, normalise(vae.cpu(), images[:2048]), images, folder)


def polish_decoder(recipe: Recipe, vae: AutoencoderKL, images: np.ndarray, folder: Path) -> AutoencoderKL:
    """Train the decoder alone on whole images: sharper, with unchanged latents."""
    device = training_device()
    vae = vae.to(device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss(step: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        x = images_to_tensor(images[rng.integers(len(images), size=recipe.vae_whole_batch)]).to(device)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.sample()
        y = vae.decode(z).sample
        return F.mse_loss(y, x) + 0.1 * F.l1_loss(y, x)

    fit("vae_decoder", vae, loss, Budget(recipe.vae_decoder_steps, 1e-3, 50, 0.1, ema=0.995), folder, recipe.seed)
    return vae.cpu().requires_grad_(True)


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: np.ndarray) -> AutoencoderKL:
    """Fold the latents' mean and scale into the adjacent 1×1 convolutions, so that the scaling factor is 1."""
    moments = torch.cat([vae.encode(images_to_tensor(chunk)).latent_dist.mean for chunk in np.array_split(images, 32)])
    mean, std = moments.mean((0, 2, 3)), moments.std((0, 2, 3))
    weight, bias, count = vae.quant_conv.weight, vae.quant_conv.bias, len(mean)
    weight[:count] /= std[:, None, None, None]
    bias[:count] = (bias[:count] - mean) / std
    bias[count:] -= 2 * std.log()  # the posterior's log-variance in the new units
    post = vae.post_quant_conv
    post.bias += torch.einsum("oihw,i->o", post.weight, mean)
    post.weight *= std[None, :, None, None]
    return vae


@torch.no_grad()
def quality(vae: AutoencoderKL, images: np.ndarray) -> dict[str, float]:
    """Return PSNR in dB of reconstructed pixels in [0, 1], mean colour error, posterior and latent std."""
    x = images_to_tensor(images)
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.mean).sample.clamp(-1, 1)
    error = ((y - x) / 2).pow(2).mean((1, 2, 3))
    colour_shift = ((y - x) / 2).mean((2, 3)).abs().mean()
    return {
        "psnr_db": float((-10 * error.log10()).mean()),
        "mean_colour_shift": float(colour_shift),
        "posterior_std": float(posterior.std.mean()),
        "latent_std": float(posterior.mean.std()),
    }
