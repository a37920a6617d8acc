"""Class images drawn by the base model, which DreamBooth and Custom Diffusion learn beside the photos."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from persres.images import list_photos, load_photo, png_bytes, square, to_images, unzip_images, zip_bytes
from persres.loading import pick_device
from persres.models import load_diffusion
from persres.params import Base
from persres.provenance import measured
from persres.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units import Unit, finish, write_atomic

PACK = "images.zip"


@torch.no_grad()
def draw_prior(
    base: Base, device: str, prompt: str, count: int, steps: int, cfg_scale: float, batch: int, offload: bool = False
) -> list[Image.Image]:
    """``count`` pictures of a prompt by the base model."""
    diffusion = load_diffusion(base, device, offload)
    channels, factor = diffusion.latent_shape
    shape, pictures = (channels, *[base.resolution // factor] * 2), []
    uncond = diffusion.unconditional()
    for start in range(0, count, batch):
        numbers = range(start, min(count, start + batch))
        cond = diffusion.encode([prompt] * len(numbers))
        noise = starting_noise([generator("prior", prompt, i) for i in numbers], shape).to(diffusion.unet.device)
        denoise = guided(diffusion.unet, cond, uncond, cfg_scale)
        pictures += to_images(diffusion.decode(sample_ddim(denoise, noise, diffusion.scheduler, steps)))
    return pictures


def prior_unit(unit: Unit, work: Path, device: str, offload: bool = False) -> None:
    """Draw one class's images into a pack."""
    spec, folder = unit.settings, unit.folder(work)
    with measured(pick_device(device)) as facts:
        pictures = draw_prior(
            Base(**spec["base"]),
            device,
            spec["prompt"],
            spec["count"],
            spec["steps"],
            spec["cfg_scale"],
            spec["batch"],
            offload,
        )
    write_atomic(folder / PACK, zip_bytes({f"{i:04d}.png": png_bytes(p) for i, p in enumerate(pictures)}))
    finish(unit, work, [folder / PACK], facts)


def read_prior(source: Path, resolution: int) -> list[Image.Image]:
    """Class images from a pack, or real ones from a folder."""
    found = (
        list(unzip_images(source).values()) if source.suffix == ".zip" else [load_photo(p) for p in list_photos(source)]
    )
    return [square(image, resolution) for image in found]
