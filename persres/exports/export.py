"""``persres export``: a residual for another tool, and a test that it does there what it does here."""

from __future__ import annotations

from pathlib import Path

import torch

from persres.config import Base, Drawing
from persres.errors import PersresError
from persres.exports.formats import FORMATS, PEFT, Factors, from_lora, to_embedding, to_kohya, to_peft
from persres.exports.quiet import quiet_loading
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.swap import TOKEN
from persres.places import located
from persres.residuals.bank import find_targets, merged
from persres.residuals.file import load_bank
from persres.runs.checkpoints import read_checked, read_learned, write_tensors
from persres.sampling.samplers import guided, sample_ddim, starting_noise
from persres.seeding import generator


def layers_of(path: Path) -> dict[str, Factors]:
    """A residual's factors by layer. Raises PersresError where the file is none, or broken."""
    tensors, info = read_learned(path)
    if info is None:
        raise PersresError(
            f"{path} is a safetensors file but not a persres residual; to read another tool's use import_lora"
        )
    paths = [
        key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")
    ]
    return from_lora({key: value for key, value in tensors.items() if key != TOKEN}, paths, {})


def base_of(path: Path) -> Base:
    """The base model that a residual was trained on, as its header says."""
    _, info = read_learned(path)
    if info is None or "spec" not in info:
        raise PersresError(
            f"{path} does not say which model it was trained on; it is no persres residual (generate draws with any LoRA if you say"
            " --subject and --model)"
        )
    return Base(**info["spec"]["base"])


def export(path: Path, to: str, out: Path) -> Path:
    """Write the residual in a format of :data:`FORMATS`; returns the file. Raises PersresError where it can't be read or written."""
    if to not in FORMATS:
        raise PersresError(f"no format {to!r}; one of {', '.join(FORMATS)}")
    layers = layers_of(path)
    tensors, header = (to_peft if to == PEFT else to_kohya)(layers)
    write_tensors(out, tensors, header)
    return out


def export_embedding(path: Path, out: Path, device: str = "auto") -> Path:
    """Write V*'s embedding as a Textual-Inversion file: the learned one where it learned, else the rare token's, which it holds.

    Raises PersresError for SDXL, whose two towers need two vectors, and where the base model can't be had.
    """
    tensors, _ = read_learned(path)
    vector = tensors.get(TOKEN)
    if vector is None:
        base = base_of(path)
        diffusion = load_diffusion(base, device)
        if diffusion.second is not None:
            raise PersresError(
                f"{base.model}: SDXL has two text towers; write the rare token {base.rare_token!r} in prompts instead"
            )
        table = diffusion.text_encoder.get_input_embeddings().weight
        vector = table[diffusion.tokenizer.convert_tokens_to_ids(base.token)]
    write_tensors(out, *to_embedding(vector))
    return out


def import_lora(path: Path, unet: torch.nn.Module, place: str = "proj_out") -> dict[str, torch.Tensor]:
    """Another tool's LoRA of output projections as a residual's state: ``<path>.up`` [m, r], ``<path>.down`` [r, m]. Every scale is in
    A, so alpha is 1 per rank. Raises PersresError naming the first key that is of no such layer."""
    tensors, header = read_checked(path)
    paths = [target.path for target in find_targets(unet, place=place)]
    layers = from_lora(tensors, paths, header)
    return {f"{p}.up": f.up for p, f in layers.items()} | {f"{p}.down": f.down for p, f in layers.items()}


def largest_difference(
    path: Path, exported: Path, prompt: str = "a photo of a {}", steps: int = 4, device: str = "auto"
) -> float:
    """The largest difference of final latents between our sampler with the residual and a plain diffusers pipeline that loaded the
    exported file, from the same noise, with the rare token in the prompt."""
    base = base_of(path)
    diffusion = load_diffusion(base, device)
    _, info = read_learned(path)
    text = prompt.format(f"{base.rare_token} {info['spec']['macro_class']}")
    channels, factor = diffusion.latent_shape
    noise = starting_noise([generator("verify", 0)], (channels, *[base.resolution // factor] * 2)).to(
        diffusion.unet.device
    )
    drawing = Drawing(variant="ours", steps=steps)
    cond, uncond = diffusion.encode([text]), diffusion.unconditional()
    with merged(diffusion.unet, load_bank(diffusion.unet, path)):
        ours = sample_ddim(guided(diffusion.unet, cond, uncond, drawing.cfg_scale), noise, diffusion.scheduler, steps)
    theirs = _by_diffusers(base, diffusion, exported, text, noise, drawing)
    return float((ours - theirs).abs().max())


def _by_diffusers(
    base: Base, diffusion: Diffusion, exported: Path, text: str, noise: torch.Tensor, drawing: Drawing
) -> torch.Tensor:
    """Final latents of a pipeline of its own, which knows nothing of persres."""
    from diffusers import DiffusionPipeline

    quiet_loading()
    pipe = DiffusionPipeline.from_pretrained(located(base.model), dtype=diffusion.unet.dtype).to(diffusion.unet.device)
    pipe.scheduler = type(diffusion.scheduler).from_config(diffusion.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(exported.parent), weight_name=exported.name)
    found = pipe(
        text,
        latents=noise.to(pipe.unet.dtype),
        num_inference_steps=drawing.steps,
        guidance_scale=drawing.cfg_scale,
        height=base.resolution,
        width=base.resolution,
        output_type="latent",
    )
    return found.images.float()
