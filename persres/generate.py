"""``persres generate``: samples images from a residual, as PNG files with their settings in the metadata."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from persres.config.schema import Base
from persres.errors import PersresError
from persres.images import check_finite
from persres.logging import progress
from persres.prompts import fill, fill_each
from persres.residuals.adapter_metadata import lora_path
from persres.residuals.header_validation import check_structure
from persres.seeding import generator
from persres.units.files import digest_file, write_atomic
from persres.untrusted.text import plain_text, printable

if TYPE_CHECKING:  # a wrong call is an error at once; torch and diffusers take seconds to import
    from persres.pipeline import PersonalizedPipeline

log = logging.getLogger(__name__)
DTYPES = get_args(Base.model_fields["dtype"].annotation)
PROMPT_LENGTH = 48  # characters of the prompt in a file's name; four bytes each at most, of 255


@dataclass(frozen=True)
class GenerateOptions:
    """Options of :func:`generate`.

    ``count`` images of each prompt. ``lag``: True for the paper's masks, ``auto`` for ours, False for none. ``subject`` reads the file as
    any LoRA, whose subject replaces ``{}``. ``model`` is the base model's present name, a LoRA's base model; with ``other_base`` its weights
    may differ from those that the residual was trained on. ``dtype`` is the precision of all weights; None is the one of training.
    """

    count: int = 1
    seed: int = 0
    lag: bool | str = True
    strength: float = 1.0
    steps: int = 50
    cfg_scale: float = 6.0
    model: str | None = None
    device: str = "auto"
    subject: str | None = None
    other_base: bool = False
    dtype: str | None = None


def generate(
    residual: Path | str,
    prompts: tuple[str, ...],
    out: Path | str,
    options: GenerateOptions = GenerateOptions(),
    others: tuple[Path | str, ...] = (),
) -> Iterator[Path]:
    """Samples images of each prompt, which holds ``{}`` for the concept; yields each file as it is written.

    With ``others``, further residuals of the same images, a prompt holds ``{1}``, ``{2}`` … or the files' names in braces. An image's noise
    depends on (seed, prompt, number) alone. A file's name ends in a digest of its settings, so that only the same image replaces it.

    Raises PersresError for a broken residual or prompt, for a model that can't be loaded or has other weights, before it samples anything;
    after the last image, where the model's safety checker withheld some, which are not written.
    """
    # a LoRA may be a folder that PEFT saved
    residual, out = Path(residual) if options.subject is None else lora_path(residual), Path(out)
    files, withheld = (residual, *map(Path, others)), []
    _check_prompts(prompts, files)
    _check_options(out, options)
    for file in files:
        check_structure(file)
    if options.subject is not None and others:
        raise PersresError("--subject reads one LoRA, which is used alone; leave out --with")
    from persres.residuals.file import load_residual

    base = load_residual(residual).header.base if options.subject is None else _base_of_lora(residual, options.model)
    pipe = _pipeline(base, files, options)
    resolution = base.resolution if options.subject is None else pipe.unet.config.sample_size * pipe.vae_scale_factor
    settings = {key: getattr(options, key) for key in ("lag", "strength", "steps", "cfg_scale", "seed")}
    settings |= {"model": options.model or base.model} | _identity(files)
    if options.dtype is not None:  # else files have the names that earlier versions gave them
        settings["dtype"] = options.dtype
    texts = [_filled(pipe, prompt) for prompt in prompts]
    pipe.check_call(texts, options.lag, options.steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PersresError(f"cannot write to {out}: {error.strerror}; give another folder with --out") from error
    with progress(residual.stem, len(prompts) * options.count, "image") as advance:
        for prompt, text in zip(prompts, texts, strict=True):
            stem = f"{_name(residual, prompt, settings | {'prompt': text})}_{options.seed}"
            for number in range(options.count):
                image = _sample(pipe, text, number, resolution, options)
                path = out / f"{stem}_{number:03d}.png"
                advance()
                if image is None:
                    withheld.append(path.name)
                    log.warning("%s is withheld by the model's safety checker, so it is not saved", path.name)
                    continue
                _write(path, image, settings | {"prompt": text, "number": number})
                yield path
    if withheld:
        raise PersresError(
            f"{len(withheld)} of {len(prompts) * options.count} images are withheld by the model's safety checker and not saved"
            f" ({_listed(withheld)}); change the prompt or the seed, or give a --model folder without a safety checker"
        )


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _base_of_lora(path: Path, model: str | None) -> Base:
    """A LoRA's file does not reliably name its base, so the user must."""
    if model is None:
        raise PersresError(f"{path}: a LoRA does not name its base model; give --model, a hub name or a folder")
    return Base(model=model)


def _check_options(out: Path, options: GenerateOptions) -> None:
    for name in ("strength", "cfg_scale"):
        if not math.isfinite(getattr(options, name)):
            raise PersresError(f"{name} is {getattr(options, name)}; give a finite number")
    if options.count < 1 or not -(2**63) <= options.seed < 2**63:
        raise PersresError(f"count {options.count}, seed {options.seed}: give a count from 1 on, and a seed of 64 bits")
    if options.dtype not in (None, *DTYPES):
        raise PersresError(f"dtype {options.dtype!r} is not known; give {', '.join(DTYPES)}")
    if out.exists() and not out.is_dir():
        raise PersresError(f"{out} is a file; give --out, a folder")


def _check_prompts(prompts: tuple[str, ...], files: tuple[Path, ...]) -> None:
    if not prompts:
        raise PersresError('no prompt; give --prompt "a photo of a {} on the beach"')
    names = [file.stem for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PersresError(f"residual {twice[0]} is given twice; give files of different names")
    for prompt in prompts:
        plain_text(prompt, "prompt", allowed="\n\t")
        if len(files) == 1:
            fill(prompt, "thing")
        else:
            fill_each(prompt, dict.fromkeys(names, "thing"))


def _pipeline(base: Base, files: tuple[Path, ...], options: GenerateOptions) -> PersonalizedPipeline:
    import torch
    from diffusers import DDIMScheduler

    from persres.exports.quiet_loading import quiet_loading
    from persres.models.loading import pick_device
    from persres.pipeline import PersonalizedPipeline

    quiet_loading()
    device = pick_device(options.device)
    # A stranger's header names the model, so no pickled weights.
    dtype = getattr(torch, options.dtype or base.dtype)
    pipe = PersonalizedPipeline.from_pretrained(options.model or base.model, dtype=dtype, use_safetensors=True)
    pipe.to(device)
    for file in files:
        pipe.load_residual(file, file.stem, subject=options.subject, allow_other_base=options.other_base)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    if len(files) > 1:
        pipe.set_residuals([file.stem for file in files])
    return pipe


def _filled(pipe: PersonalizedPipeline, prompt: str) -> str:
    if pipe.multi_concept:
        return fill_each(prompt, {name: residual.phrase for name, residual in pipe.multi_concept.items()})
    return fill(prompt, pipe.residuals[pipe.active].phrase)


def _identity(files: tuple[Path, ...]) -> dict[str, Any]:
    """Names and digests of the residuals."""
    digests = [digest_file(file) for file in files]
    if len(files) == 1:
        return {"residual": printable(files[0].name), "residual_sha256": digests[0]}
    return {"residuals": [printable(file.name) for file in files], "residuals_sha256": digests}


def _sample(
    pipe: PersonalizedPipeline, text: str, number: int, resolution: int, options: GenerateOptions
) -> Image.Image | None:
    """The image, None where the model's safety checker put a black one in its place. Raises PersresError for NaN."""
    import torch

    from persres.sampling.samplers import starting_noise

    side = resolution // pipe.vae_scale_factor
    draw = generator("generate", options.seed, text, number)
    noise = starting_noise([draw], (pipe.unet.config.in_channels, side, side))
    sampled = pipe(
        text,
        lag=options.lag,
        strength=options.strength,
        latents=noise.to(pipe.unet.device, pipe.unet.dtype),
        num_inference_steps=options.steps,
        guidance_scale=options.cfg_scale,
        height=resolution,
        width=resolution,
        output_type="np",
    )
    if any(getattr(sampled, "nsfw_content_detected", None) or ()):
        return None
    check_finite(torch.from_numpy(sampled.images))
    return pipe.image_processor.numpy_to_pil(sampled.images)[0]


def _name(residual: Path, prompt: str, settings: dict[str, Any]) -> str:
    """The prompt's words, for people, and a digest of all settings, for what the words leave out."""
    words = "".join(c if c.isalnum() else "_" for c in prompt.replace("{}", residual.stem))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{'_'.join(filter(None, words.split('_')))[:PROMPT_LENGTH]}_{digest}"


def _write(path: Path, image: Image.Image, settings: dict[str, Any]) -> None:
    """A PNG whose ``persres`` text holds the settings as JSON."""
    buffer, metadata = io.BytesIO(), PngInfo()
    metadata.add_itxt("persres", json.dumps(settings, ensure_ascii=False, sort_keys=True))
    image.save(buffer, "PNG", pnginfo=metadata)
    write_atomic(path, buffer.getvalue())
