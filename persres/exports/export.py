"""``persres export``: a residual for another tool, and a test that it does there what it does here."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from persres.config.schema import SamplingConfig
from persres.errors import PersresError
from persres.exports.about import export_metadata
from persres.exports.formats import EMBEDDINGS, FORMATS, PEFT, Factors, from_peft, to_embedding, to_kohya, to_peft
from persres.exports.quiet_loading import quiet_loading
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.weight_patching import TOKEN, patched_weights
from persres.package_paths import located
from persres.residuals.bank import merged_weights
from persres.residuals.file import load_bank
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator
from persres.units.checkpoints import read_header, read_learned, read_residual, write_tensors
from persres.units.header_validation import ResidualHeader

if TYPE_CHECKING:  # seconds to import
    from diffusers import DiffusionPipeline

OWN = frozenset((TOKEN,))  # beside the layers' factors


def layers_of(path: Path) -> dict[str, Factors]:
    """A residual's factors by layer. Raises PersresError where the file is none, or broken."""
    tensors, info = read_learned(path)
    if info is None:
        raise PersresError(
            f"{path} is a safetensors file but not a persres residual; to read another tool's use persres import"
        )
    try:
        return from_peft({key: value for key, value in tensors.items() if key not in OWN})
    except PersresError as error:
        raise PersresError(f"{path}: {error}") from error


def read_residual_header(path: Path) -> ResidualHeader:
    """What a residual's header says: its base model, class and settings. Raises PersresError where it does not."""
    return read_residual(path, OWN)[1]


def export(path: Path, to: str, out: Path) -> Path:
    """Write the residual in a format of :data:`FORMATS`, with a header that says where it comes from (persres/exports/about.py); returns
    the file. Raises PersresError where it can't be read or written."""
    if to not in FORMATS:
        raise PersresError(f"no format {to!r}; one of {', '.join(FORMATS)}")
    layers = layers_of(path)
    tensors, header = (to_peft if to == PEFT else to_kohya)(layers)
    write_tensors(out, tensors, header | export_metadata(path, read_header(path)))
    return out


def export_embedding(path: Path, out: Path, device: str = "auto") -> Path:
    """Write V*'s embedding as a Textual-Inversion file: the learned one where it learned, else the rare token's, which it holds. Of SDXL,
    whose towers are two, the file has two vectors, under ComfyUI's and A1111's names.

    Raises PersresError where the base model can't be had.
    """
    tensors, said = read_residual(path, OWN)
    write_tensors(out, *to_embedding([tensors[TOKEN]] if TOKEN in tensors else _rare_vectors(said, device)))
    return out


def _rare_vectors(said: ResidualHeader, device: str) -> list[torch.Tensor]:
    """The rare token's in every text tower, which :func:`load_diffusion` has copied to V*'s."""
    towers = load_diffusion(said.base, device).towers
    tables = [(tokenizer, encoder.get_input_embeddings().weight) for tokenizer, encoder in towers]
    return [table[tokenizer.convert_tokens_to_ids(said.base.token)] for tokenizer, table in tables]


def largest_difference(
    path: Path,
    exported: Path,
    embedding: Path | None = None,
    prompt: str = "a photo of a {}",
    steps: int = 4,
    device: str = "auto",
) -> float:
    """The largest difference of final latents between our sampler with the residual and a plain diffusers pipeline that loaded the
    exported file, from the same noise. The prompt holds the rare token, or V* where ``embedding``, its exported file, is loaded there too.

    In float32, whatever the residual was trained beside: half precision's rounding would hide an error, or look like one.
    """
    said = read_residual_header(path)
    said = replace(said, base=said.base.model_copy(update={"dtype": "float32"}))
    base, sampling = said.base, SamplingConfig(variant="ours", steps=steps)
    text = prompt.format(f"{base.rare_token if embedding is None else base.token} {said.macro_class}")
    with torch.backends.cudnn.flags(allow_tf32=False):
        diffusion = load_diffusion(base, device)
        channels, factor = diffusion.latent_shape
        noise = starting_noise([generator("verify", 0)], (channels, *[base.resolution // factor] * 2))
        noise = noise.to(diffusion.unet.device)
        ours = _by_us(path, diffusion, said, text, noise, sampling)
        theirs = _by_diffusers(_plain_pipeline(said, diffusion, exported, embedding), said, text, noise, sampling)
    return float((ours - theirs).abs().max())


def _by_us(
    path: Path, diffusion: Diffusion, said: ResidualHeader, text: str, noise: torch.Tensor, sampling: SamplingConfig
) -> torch.Tensor:
    learned = read_learned(path)[0].get(TOKEN)
    with ExitStack() as stack:
        if learned is not None:
            number = diffusion.tokenizer.convert_tokens_to_ids(said.base.token)
            stack.enter_context(patched_weights(diffusion, {TOKEN: learned.to(diffusion.unet.device)}, number))
        cond, uncond = diffusion.encode([text]), diffusion.unconditional()
        stack.enter_context(merged_weights(diffusion.unet, load_bank(diffusion.unet, path)))
        denoise = guided(diffusion.unet, cond, uncond, sampling.cfg_scale)
        return sample_ddim(denoise, noise, diffusion.scheduler, sampling.steps)


def _plain_pipeline(
    said: ResidualHeader, diffusion: Diffusion, exported: Path, embedding: Path | None
) -> DiffusionPipeline:
    """A pipeline of its own, which knows nothing of persres, with our schedule and the exported files."""
    from diffusers import DiffusionPipeline

    quiet_loading()
    pipe = DiffusionPipeline.from_pretrained(located(said.base.model), dtype=torch.float32)
    pipe.to(diffusion.unet.device)
    pipe.scheduler = type(diffusion.scheduler).from_config(diffusion.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(exported.parent), weight_name=exported.name)
    if embedding is not None:
        load_embedding(pipe, embedding, said.base.token)
    return pipe


def load_embedding(pipe: DiffusionPipeline, path: Path, token: str) -> None:
    """Read an exported embedding into a plain pipeline, as docs/diffusers.md says it: ``load_textual_inversion`` for each text tower.

    Of SDXL the pooled prompt is then read at its end token: old configs call it number 2, and transformers takes the highest number for
    it, which the new word now has.
    """
    vectors = load_file(path)
    for key, part in zip(EMBEDDINGS[len(vectors)], ("", "_2"), strict=False):
        tokenizer, encoder = getattr(pipe, f"tokenizer{part}"), getattr(pipe, f"text_encoder{part}")
        pipe.load_textual_inversion(vectors[key], token=token, tokenizer=tokenizer, text_encoder=encoder)
        for module in encoder.modules() if len(vectors) > 1 else ():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id


def _by_diffusers(
    pipe: DiffusionPipeline, said: ResidualHeader, text: str, noise: torch.Tensor, sampling: SamplingConfig
) -> torch.Tensor:
    return pipe(
        text,
        latents=noise,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.cfg_scale,
        height=said.base.resolution,
        width=said.base.resolution,
        output_type="latent",
    ).images.float()
