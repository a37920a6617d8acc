"""``persres export --verify``: whether plain diffusers samples the same latents from an exported file as persres from the residual."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.exports.formats import EMBEDDINGS
from persres.exports.quiet_loading import quiet_loading
from persres.models.base_model import load_pipeline
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.weight_patching import TOKEN, patched_weights
from persres.residuals.bank import merged_weights
from persres.residuals.file import ResidualFile, load_residual
from persres.residuals.header_validation import read_checked
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator

if TYPE_CHECKING:  # seconds to import
    from diffusers import DiffusionPipeline

CFG_SCALE = SamplingConfig(variant="ours").cfg_scale


def largest_difference(
    path: Path | str, exported: Path | str, embedding: Path | str | None = None, steps: int = 4, device: str = "auto"
) -> float:
    """Returns the largest difference of final latents, from the same noise, between our sampler with the residual and a plain diffusers
    pipeline with the exported file.

    The prompt holds the rare token, or V* where ``embedding``, its exported file, is given. Both run in float32 whatever the residual was
    trained in: rounding in half precision would hide an error, or look like one.
    """
    residual = load_residual(path)
    base = residual.header.base.model_copy(update={"dtype": "float32"})
    prompt = f"a photo of a {base.rare_token if embedding is None else base.token} {residual.header.macro_class}"
    with torch.backends.cudnn.flags(allow_tf32=False):
        diffusion = load_diffusion(base, device)
        channels, factor = diffusion.latent_shape
        noise = starting_noise([generator("verify", 0)], (channels, *[base.resolution // factor] * 2))
        noise = noise.to(diffusion.unet.device)
        ours = _by_persres(residual, diffusion, prompt, noise, steps)
        theirs = _by_diffusers(_plain_pipeline(base, diffusion, exported, embedding), base, prompt, noise, steps)
    return float((ours - theirs).abs().max())


def _by_persres(
    residual: ResidualFile, diffusion: Diffusion, prompt: str, noise: torch.Tensor, steps: int
) -> torch.Tensor:
    token = nullcontext()
    if residual.token is not None:
        token_id = diffusion.tokenizer.convert_tokens_to_ids(residual.header.base.token)
        token = patched_weights(diffusion, {TOKEN: residual.token.to(diffusion.unet.device)}, token_id)
    with token, merged_weights(diffusion.unet, residual.bank(diffusion.unet)):
        cond, uncond = diffusion.encode([prompt]), diffusion.unconditional()
        return sample_ddim(guided(diffusion.unet, cond, uncond, CFG_SCALE), noise, diffusion.scheduler, steps)


def _plain_pipeline(
    base: Base, diffusion: Diffusion, exported: Path | str, embedding: Path | str | None
) -> DiffusionPipeline:
    """A separate pipeline without any code of persres, with our noise schedule and the exported files."""
    quiet_loading()
    pipe = load_pipeline(base.model, dtype=torch.float32)
    pipe.to(diffusion.unet.device)
    pipe.scheduler = type(diffusion.scheduler).from_config(diffusion.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(Path(exported).parent), weight_name=Path(exported).name)
    if embedding is not None:
        load_embedding(pipe, embedding, base.token)
    return pipe


def load_embedding(pipe: DiffusionPipeline, path: Path | str, token: str) -> None:
    """Loads an exported embedding into a plain pipeline, as docs/diffusers.md shows: ``load_textual_inversion`` for each text tower.

    SDXL's pooled prompt must then be read at its end token. Old configs call that number 2, and transformers then takes the highest number,
    which the new word now has. Raises PersresError where the file is broken or of another kind.
    """
    vectors, _ = read_checked(path)
    if set(vectors) not in map(set, EMBEDDINGS.values()):
        raise PersresError(f"{path} is not an embedding that persres exported; run persres export --embedding")
    for key, part in zip(EMBEDDINGS[len(vectors)], ("", "_2"), strict=False):
        tokenizer, encoder = getattr(pipe, f"tokenizer{part}"), getattr(pipe, f"text_encoder{part}")
        pipe.load_textual_inversion(vectors[key], token=token, tokenizer=tokenizer, text_encoder=encoder)
        for module in encoder.modules() if len(vectors) > 1 else ():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id


def _by_diffusers(pipe: DiffusionPipeline, base: Base, prompt: str, noise: torch.Tensor, steps: int) -> torch.Tensor:
    size = {"height": base.resolution, "width": base.resolution}
    sampled = pipe(
        prompt, latents=noise, num_inference_steps=steps, guidance_scale=CFG_SCALE, output_type="latent", **size
    )
    return sampled.images.float()
