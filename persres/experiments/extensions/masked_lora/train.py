"""LoRA training as in diffusers' ``train_dreambooth_lora.py``, with peft; files saved by diffusers.

The recipe: rank 4 = alpha, Gaussian init; queries, keys, values and outputs of every attention; prompt "a photo of sks <class>";
AdamW (0.9, 0.999), weight decay 0.01, ε 1e-8, gradients clipped at 1, constant learning rate, no prior preservation. Two variants
add convolutions (as LoCon does) or the text encoder (``--train_text_encoder``). Learning rate, steps and batch size suit the mini
world; the learning rate was chosen on one concept.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import nn

from persres.config.schema import Base
from persres.images import load_photo, square
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.text_encoding import prompt_states
from persres.seeding import generator, seed_from
from persres.training.batches import EncodedImages, random_rows
from persres.training.divergence import check_losses, step_and_rate
from persres.training.residual_training import diffusion_target
from persres.units.checkpoints import write_tensors
from persres.units.specs import FileRef, Spec
from persres.units.unit import Unit, finish

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
PEFT_FILE, KOHYA_FILE = "lora.safetensors", "kohya.safetensors"


class LoraRecipe(BaseModel):
    """Settings of one variant; defaults are the script's except learning rate, steps and batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: tuple[str, ...] = ATTENTION
    text: tuple[str, ...] = ()
    rank: int = 4
    lr: float = 1e-3
    steps: int = 250
    batch: int = 4
    prompt: str = "a photo of {} {}"  # the rare word, the class
    seed: int = 0


VARIANTS: dict[str, LoraRecipe] = {
    "attention": LoraRecipe(),
    "convolutions": LoraRecipe(targets=ATTENTION + CONVOLUTIONS),
    "text": LoraRecipe(text=TEXT),
}


class LoraTrainSpec(Spec):
    """One concept trained by one variant of the recipe."""

    base: Base
    model: str
    concept: str
    macro_class: str
    recipe: LoraRecipe
    photos: tuple[FileRef, ...]
    code: str


def train_unit(unit: Unit[LoraTrainSpec], work: Path, device: str) -> None:
    """Train one LoRA; save the same weights with PEFT keys and with kohya keys."""
    spec, folder = unit.spec, unit.folder(work)
    diffusion = load_diffusion(spec.base, device)
    photos = [square(load_photo(Path(p.path)), spec.base.resolution) for p in spec.photos]
    unet, encoder = add_adapters(diffusion, spec)
    losses = train_lora(diffusion, unet, encoder, EncodedImages.of(diffusion, photos), spec)
    folder.mkdir(parents=True, exist_ok=True)
    save(unet, encoder if spec.recipe.text else None, folder)
    finish(unit, work, [folder / PEFT_FILE, folder / KOHYA_FILE], {"first_loss": losses[0], "last_loss": losses[-1]})


def add_adapters(diffusion: Diffusion, spec: LoraTrainSpec) -> tuple[nn.Module, nn.Module]:
    """Return copies of U-Net and text encoder with peft adapters; the shared model stays unchanged."""
    from peft import LoraConfig

    unet, encoder, recipe = deepcopy(diffusion.unet), deepcopy(diffusion.text_encoder), spec.recipe
    shape = {"r": recipe.rank, "lora_alpha": recipe.rank, "init_lora_weights": "gaussian"}
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(seed_from("lora", spec.concept, recipe.seed))
        unet.add_adapter(LoraConfig(target_modules=list(recipe.targets), **shape))
        if recipe.text:
            encoder.add_adapter(LoraConfig(target_modules=list(recipe.text), **shape))
    return unet, encoder


def train_lora(
    diffusion: Diffusion, unet: nn.Module, encoder: nn.Module, images: EncodedImages, spec: LoraTrainSpec
) -> list[float]:
    """Run the script's training loop; return the loss of each step."""
    recipe, device, scheduler = spec.recipe, diffusion.unet.device, diffusion.scheduler
    values = [p for part in (unet, encoder) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=recipe.lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    caption, losses = recipe.prompt.format(spec.base.rare_token, spec.macro_class), []
    for step in range(recipe.steps):
        draw = generator("lora", spec.concept, recipe.seed, step)
        latents = images.sample(random_rows(len(images.images), recipe.batch, draw), draw)
        noise = torch.randn(latents.shape, generator=draw).to(device)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=draw).to(device)
        text = prompt_states(diffusion.tokenizer, encoder, [caption] * len(latents))
        out = unet(scheduler.add_noise(latents, noise, t), t, encoder_hidden_states=text).sample
        loss = F.mse_loss(out.float(), diffusion_target(scheduler, latents, noise, t).float())
        loss.backward()
        nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        check_losses({spec.concept: losses[-1]}, step_and_rate(step + 1, recipe.steps, recipe.lr))
    return losses


def save(unet: nn.Module, encoder: nn.Module | None, folder: Path) -> None:
    """Write ``lora.safetensors`` as the script does and ``kohya.safetensors`` with diffusers' converter."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict

    parts = {"unet": unet} | ({} if encoder is None else {"text_encoder": encoder})
    # Without the token embeddings: peft would save them because V* enlarges the table, the script adds no token.
    states = {n: get_peft_model_state_dict(part, save_embedding_layers=False) for n, part in parts.items()}
    layers = {f"{name}_lora_layers": convert_state_dict_to_diffusers(dict(state)) for name, state in states.items()}
    metadata = {f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in parts.items()}
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=PEFT_FILE, **layers, **metadata)
    named = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    write_tensors(folder / KOHYA_FILE, convert_state_dict_to_kohya(named), {"format": "pt"})
