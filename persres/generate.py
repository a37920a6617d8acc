"""``persres generate``: more pictures from a residual, as PNG with the settings in their metadata."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from persres.config.schema import Base
from persres.errors import PersresError
from persres.exports.quiet_loading import quiet_loading
from persres.logging import progress
from persres.models.loading import pick_device
from persres.pipeline import PersonalizedPipeline
from persres.prompts import fill, fill_each
from persres.residuals.file import load_residual
from persres.sampling.samplers import starting_noise
from persres.seeding import generator
from persres.units.files import digest_file, write_atomic

WORDS = 48  # characters of the prompt in a file's name; four bytes each at most, of 255


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
    others: tuple[Path, ...] = (),
    other_base: bool = False,
) -> Iterator[Path]:
    """Draw ``count`` pictures of each prompt, which holds ``{}`` where the thing goes; yields each file as it is written. With ``others``,
    further residuals of the same picture, a prompt holds ``{1}``, ``{2}`` … or the files' names in braces.

    A picture's noise belongs to (seed, prompt, number): another count or order changes none. ``lag``: True the paper's masks, ``auto`` ours.
    With ``subject`` the file is any LoRA, ``model`` its base, and the subject takes the place of ``{}``. ``model`` may be elsewhere than
    where the residual was trained; of other weights only with ``other_base``. A file's name ends in a digest of what it was drawn with, so
    that only the same picture takes its place.

    Raises PersresError for a broken residual or prompt, for a model that can't be had and one of other weights, before anything is drawn.
    """
    if not prompts:
        raise PersresError('no prompt; say --prompt "a photo of a {} on the beach"')
    files = (residual, *others)
    _check_prompts(prompts, files)
    if subject is not None and others:
        raise PersresError("--subject reads one LoRA, which acts alone; leave out --with")
    base = load_residual(residual).header.base if subject is None else _base_for_lora(residual, model)
    quiet_loading()
    how = {
        "dtype": getattr(torch, base.dtype),
        "use_safetensors": True,
    }  # a stranger's header names the model: no pickles
    pipe = PersonalizedPipeline.from_pretrained(model or base.model, **how)
    pipe.to(pick_device(device))
    for file in files:
        pipe.load_residual(file, file.stem, subject=subject, allow_other_base=other_base)
    resolution = base.resolution if subject is None else pipe.unet.config.sample_size * pipe.vae_scale_factor
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    if others:
        pipe.set_residuals([file.stem for file in files])
    settings = {"lag": lag, "strength": strength, "steps": steps, "cfg_scale": cfg_scale, "seed": seed}
    settings |= {"model": model or base.model} | _whose(files)
    with progress(residual.stem, len(prompts) * count, "picture") as advance:
        for prompt in prompts:
            text = _filled(pipe, prompt)
            for number in range(count):
                picture = _picture(pipe, text, resolution, (seed, text, number), lag, strength, steps, cfg_scale)
                said = settings | {"prompt": text}
                path = out / f"{_name(residual, prompt, said)}_{seed}_{number:03d}.png"
                _write(path, picture, said | {"number": number})
                advance()
                yield path


def _base_for_lora(path: Path, model: str | None) -> Base:
    """A LoRA's file says nothing sure of its base, which must be said."""
    if model is None:
        raise PersresError(
            f"{path}: a LoRA does not say which model it was trained on; say --model, a hub name or a folder"
        )
    return Base(model=model)


def _check_prompts(prompts: tuple[str, ...], files: tuple[Path, ...]) -> None:
    names = [file.stem for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PersresError(f"residual {twice[0]} is named twice; each acts once, and files need names of their own")
    for prompt in prompts:
        if len(files) == 1:
            fill(prompt, "thing")
        else:
            fill_each(prompt, dict.fromkeys(names, "thing"))


def _filled(pipe: PersonalizedPipeline, prompt: str) -> str:
    if pipe.multi_concept:
        return fill_each(prompt, {name: one.phrase for name, one in pipe.multi_concept.items()})
    return fill(prompt, pipe.residuals[pipe.active].phrase)


def _whose(files: tuple[Path, ...]) -> dict:
    """Which residuals, by name and digest."""
    digests = [digest_file(file) for file in files]
    if len(files) == 1:
        return {"residual": files[0].name, "residual_sha256": digests[0]}
    return {"residuals": [file.name for file in files], "residuals_sha256": digests}


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


def _name(residual: Path, prompt: str, settings: dict) -> str:
    """The prompt's words, for people, and a digest of all settings, which keeps apart what words do not."""
    words = "".join(c if c.isalnum() else "_" for c in prompt.replace("{}", residual.stem))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{'_'.join(filter(None, words.split('_')))[:WORDS]}_{digest}"


def _write(path: Path, picture: Image.Image, settings: dict) -> None:
    """A PNG whose ``persres`` text holds the settings as JSON."""
    buffer, said = io.BytesIO(), PngInfo()
    said.add_itxt("persres", json.dumps(settings, ensure_ascii=False, sort_keys=True))
    picture.save(buffer, "PNG", pnginfo=said)
    write_atomic(path, buffer.getvalue())
