"""``persres generate``: more pictures from a residual, as PNG with the settings in their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from persres.config import Base
from persres.errors import PersresError
from persres.exports.export import base_of
from persres.exports.quiet import quiet_loading
from persres.models.loading import pick_device
from persres.personalized import PersonalizedPipeline
from persres.progress import progress
from persres.prompt_text import fill
from persres.runs.files import digest_file, write_atomic
from persres.sampling.samplers import starting_noise
from persres.seeding import generator


def generate(
    residual: Path,
    prompts: tuple[str, ...],
    out: Path,
    count: int = 1,
    seed: int = 0,
    lag: bool | str = True,
    strength: float = 1.0,
    steps: int = 50,
    cfg_scale: float = 6.0,
    model: str | None = None,
    device: str = "auto",
    subject: str | None = None,
) -> Iterator[Path]:
    """Draw ``count`` pictures of each prompt, which holds ``{}`` where the thing goes; yields each file as it is written.

    A picture's noise belongs to (seed, prompt, number): another count or order changes none. ``lag``: True the paper's masks, ``auto`` ours.
    With ``subject`` the file is any LoRA, ``model`` its base, and the subject takes the place of ``{}``. Raises PersresError for a
    broken residual or prompt and for a model that can't be had, before anything is drawn.
    """
    for prompt in prompts:
        fill(prompt, "thing")
    if not prompts:
        raise PersresError('no prompt; say --prompt "a photo of a {} on the beach"')
    base = base_of(residual) if subject is None else _base_for_lora(residual, model)
    quiet_loading()
    pipe = PersonalizedPipeline.from_pretrained(model or base.model, dtype=getattr(torch, base.dtype))
    pipe.to(pick_device(device)).load_residual(residual, subject=subject, allow_other_base=model is not None)
    resolution = base.resolution if subject is None else pipe.unet.config.sample_size * pipe.vae_scale_factor
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    phrase, whose = pipe.residuals[pipe.active].phrase, digest_file(residual)
    settings = {"lag": lag, "strength": strength, "steps": steps, "cfg_scale": cfg_scale, "seed": seed}
    settings |= {"model": model or base.model, "residual": residual.name, "residual_sha256": whose}
    with progress(residual.stem, len(prompts) * count, "picture") as advance:
        for prompt in prompts:
            text = fill(prompt, phrase)
            for number in range(count):
                picture = _picture(pipe, text, resolution, (seed, text, number), lag, strength, steps, cfg_scale)
                path = out / f"{_name(residual, prompt)}_{seed}_{number:03d}.png"
                _write(path, picture, settings | {"prompt": text, "number": number})
                advance()
                yield path


def _base_for_lora(path: Path, model: str | None) -> Base:
    """A LoRA's file says nothing sure of its base, which must be said."""
    if model is None:
        raise PersresError(
            f"{path}: a LoRA does not say which model it was trained on; say --model, a hub name or a folder"
        )
    return Base(model=model)


def _picture(
    pipe: PersonalizedPipeline,
    text: str,
    resolution: int,
    named: tuple,
    lag: bool | str,
    strength: float,
    steps: int,
    cfg_scale: float,
) -> Image.Image:
    side = resolution // pipe.vae_scale_factor
    noise = starting_noise([generator("generate", *named)], (pipe.unet.config.in_channels, side, side))
    found = pipe(
        text,
        lag=lag,
        strength=strength,
        latents=noise.to(pipe.unet.device, pipe.unet.dtype),
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        height=resolution,
        width=resolution,
    )
    return found.images[0]


def _name(residual: Path, prompt: str) -> str:
    words = "".join(c if c.isalnum() else "_" for c in prompt.replace("{}", residual.stem))
    return "_".join(filter(None, words.split("_")))[:80]


def _write(path: Path, picture: Image.Image, settings: dict) -> None:
    """A PNG whose ``persres`` text holds the settings as JSON."""
    import io

    buffer, said = io.BytesIO(), PngInfo()
    said.add_itxt("persres", json.dumps(settings, ensure_ascii=False, sort_keys=True))
    picture.save(buffer, "PNG", pnginfo=said)
    write_atomic(path, buffer.getvalue())
