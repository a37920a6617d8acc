"""Class images, sampled by the base model; some methods train on them next to the photos."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from persres.images import list_photos, load_photo, png_bytes, square, to_images, unzip_images, zip_bytes
from persres.models.diffusion import load_diffusion
from persres.models.loading import pick_device
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units.files import write_atomic
from persres.units.provenance import measured
from persres.units.specs import ClassImagesSpec
from persres.units.unit import Unit, finish

ARCHIVE = "images.zip"


@torch.no_grad()
def sample_class_images(
    spec: ClassImagesSpec, device: str, batch: int = 8, cpu_offload: bool = False
) -> list[Image.Image]:
    """``count`` images of the prompt by the base model."""
    diffusion = load_diffusion(spec.base, device, cpu_offload)
    channels, factor = diffusion.latent_shape
    shape, images = (channels, *[spec.base.resolution // factor] * 2), []
    uncond = diffusion.unconditional()
    for start in range(0, spec.count, batch):
        numbers = range(start, min(spec.count, start + batch))
        cond = diffusion.encode([spec.prompt] * len(numbers))
        noise = starting_noise([generator("prior", spec.prompt, i) for i in numbers], shape).to(diffusion.unet.device)
        denoise = guided(diffusion.unet, cond, uncond, spec.cfg_scale)
        images += to_images(diffusion.decode(sample_ddim(denoise, noise, diffusion.scheduler, spec.steps)))
    return images


def class_images_unit(
    unit: Unit[ClassImagesSpec], work: Path, device: str, cpu_offload: bool = False, batch: int = 8
) -> None:
    """Sample one class's images into an image archive."""
    with measured(pick_device(device)) as facts:
        images = sample_class_images(unit.spec, device, batch, cpu_offload)
    archive = unit.folder(work) / ARCHIVE
    write_atomic(archive, zip_bytes({f"{i:04d}.png": png_bytes(image) for i, image in enumerate(images)}))
    finish(unit, work, [archive], facts)


def read_class_images(source: Path, resolution: int) -> list[Image.Image]:
    """Class images from an image archive, or real ones from a folder, square at the resolution."""
    if source.suffix == ".zip":
        images = list(unzip_images(source).values())
    else:
        images = [load_photo(path) for path in list_photos(source)]
    return [square(image, resolution) for image in images]
