"""ViCo (Hao et al. 2023): trains V*'s embedding and new cross-attention from the image to a reference photo.

The new attention is in every second decoder block from the second (four on Stable Diffusion v1.4). The base model's weights stay frozen.

The reference, noised to the same t, passes through the U-Net in the same batch. The image attends to those reference pixels whose
attention to V* exceeds Otsu's threshold. A regularisation pulls V*'s attention on the reference towards the end
token's. Our choices: in sampling, the reference is the concept's first photo, with one noise for all steps,
and the unconditional branch has no reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from pydantic import Field
from torch import nn

from persres.config.schema import LearningRate
from persres.errors import PersresError
from persres.images import load_photo, square, to_tensor
from persres.methods.common.base import LearnedFile, LoadedMethod
from persres.methods.common.rival import Rival
from persres.methods.common.state_file import load_state
from persres.methods.common.word_embeddings import WordEmbeddingSettings, captions_of, start_vector, token_alone
from persres.models.attention import RecordingAttnProcessor
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import concept_positions, prompt_ids, prompt_states
from persres.models.weight_patching import TOKEN
from persres.seeding import generator
from persres.training.batches import Batch, EncodedData, TrainingPlan, masked_error, plain_batch, random_rows
from persres.training.residual_training import diffusion_target
from persres.units.specs import ImageSpec

PREFIX = "image."


class ViCo(WordEmbeddingSettings):
    """haoosz/ViCo: V* at 5e-3, image cross-attention in four decoder blocks at 1e-5, attention regularisation 5e-4,
    checkpoint 400. Its paper samples at guidance 7.5; set ``cfg_scale: 7.5`` in its config for that."""

    method: Literal["vico"] = "vico"
    steps: int = Field(400, ge=1)
    batch_size: int = Field(1, ge=1)
    token_lr: LearningRate = 5e-3
    lr: LearningRate = 1e-5
    attention_weight: float = Field(5e-4, ge=0)


def target_blocks(unet: nn.Module) -> list[str]:
    """The paths of every second transformer of the decoder, from the second."""
    paths = [
        path for path, m in unet.named_modules() if isinstance(m, Transformer2DModel) and path.startswith("up_blocks")
    ]
    return paths[1::2]


class ImageBlocks(nn.Module):
    """One new transformer block per target block: self-attention, attention to the reference, feed-forward."""

    def __init__(self, unet: nn.Module, draw: torch.Generator | None = None) -> None:
        super().__init__()
        blocks = {}
        for path in target_blocks(unet):
            attn = unet.get_submodule(path).transformer_blocks[-1].attn1
            width = attn.to_q.in_features
            blocks[path.replace(".", "/")] = BasicTransformerBlock(
                width, attn.heads, width // attn.heads, cross_attention_dim=width
            )
        self.blocks = nn.ModuleDict(blocks)
        if draw is not None:
            self._initialise(draw)

    @torch.no_grad()
    def _initialise(self, draw: torch.Generator) -> None:
        """torch's default for linear layers, with a fixed seed."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for value in (module.weight, module.bias):
                    if value is not None:
                        value.copy_((torch.rand(value.shape, generator=draw) * 2 - 1) * bound)

    def at(self, path: str) -> nn.Module:
        """The new block of a target block."""
        return self.blocks[path.replace(".", "/")]


def otsu(attention: torch.Tensor, levels: int = 10) -> torch.Tensor:
    """Pixels above Otsu's threshold of each row, bool [n, pixels]; at least one."""
    low = attention.min(1, keepdim=True).values
    spread = (attention.max(1, keepdim=True).values - low).clamp(min=1e-12)
    scaled = (attention - low) / spread
    above = scaled[None] >= (torch.arange(1, levels, device=scaled.device) / levels).view(-1, 1, 1)  # [t, n, pixels]
    high, rest = above.double().mean(2), (~above).double().mean(2)
    mean_high = (scaled * above).sum(2) / above.sum(2).clamp(min=1)
    mean_rest = (scaled * ~above).sum(2) / (~above).sum(2).clamp(min=1)
    best = (high * rest * (mean_high - mean_rest) ** 2).argmax(0)
    return above[best, torch.arange(len(scaled), device=scaled.device)] | (scaled >= 1)


@dataclass
class UNetWithReference:
    """The U-Net with a reference; called like a U-Net, it returns ``.sample`` of the images only.

    ``reference`` [n, c, h, w] clean latents, ``noise`` the same; ``v`` and ``end`` float [n, length]: 1 at V*'s and the end token.
    Rows without V* have no reference. ``regularisation`` after a call is the attention loss, summed over blocks.
    """

    diffusion: Diffusion
    blocks: ImageBlocks
    reference: torch.Tensor
    noise: torch.Tensor
    v: torch.Tensor
    end: torch.Tensor
    regularisation: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, x: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        n = len(x)
        times = t.expand(n) if t.ndim == 0 else t
        noised = self.diffusion.scheduler.add_noise(self.reference, self.noise, times).to(x.dtype)
        self.regularisation = torch.zeros((), device=x.device)
        with self._hooked(n):
            out = self.diffusion.unet(
                torch.cat([x, noised]),
                torch.cat([times, times]),
                encoder_hidden_states=torch.cat([encoder_hidden_states] * 2),
            ).sample
        return SimpleNamespace(sample=out[:n])

    @contextmanager
    def _hooked(self, n: int) -> Iterator[None]:
        undo = []
        try:
            for path in target_blocks(self.diffusion.unet):
                block = self.diffusion.unet.get_submodule(path).transformer_blocks[-1]
                undo.append(self._watch(block, self.blocks.at(path), n))
            yield
        finally:
            for processor, handle, block in undo:
                handle.remove()
                block.attn2.set_processor(processor)

    def _watch(self, block: nn.Module, image_block: nn.Module, n: int):
        seen: list[torch.Tensor] = []

        def after(_module: nn.Module, _args: tuple, output: torch.Tensor) -> torch.Tensor:
            weights = seen.pop()[n:]  # the reference's
            concept = torch.einsum("npt,nt->np", weights, self.v.to(weights.dtype))
            end = torch.einsum("npt,nt->np", weights, self.end.to(weights.dtype)).detach()
            has_v = self.v.any(1)
            if has_v.any():
                peaks = (m / m.max(1, keepdim=True).values.clamp(min=1e-12) for m in (concept[has_v], end[has_v]))
                self.regularisation = self.regularisation + F.mse_loss(*peaks)
            mask = otsu(concept.detach())
            attended = image_block(
                output[:n], encoder_hidden_states=output[n:], encoder_attention_mask=_bias(mask, output.dtype)
            )
            return torch.cat([torch.where(has_v[:, None, None], attended, output[:n]), output[n:]])

        before = block.attn2.processor
        block.attn2.set_processor(RecordingAttnProcessor(seen.append))
        return before, block.register_forward_hook(after), block


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bias that diffusers adds to the attention scores, [n, 1, pixels]."""
    return ((~mask).to(dtype) * -1e4)[:, None]


def positions(diffusion: Diffusion, prompts: list[str], token: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions of V* and of the first end token, float [n, length] each; zeros for a prompt without V*."""
    ids = prompt_ids(diffusion.tokenizer, prompts)
    end = F.one_hot((ids == diffusion.tokenizer.eos_token_id).int().argmax(1), ids.shape[1]).float()
    rows = [
        concept_positions(diffusion.tokenizer, p, token) if token in p else torch.zeros(ids.shape[1]) for p in prompts
    ]
    return torch.stack(rows).to(diffusion.unet.device), end.to(diffusion.unet.device)


def plan(diffusion: Diffusion, settings: ViCo, data: EncodedData) -> TrainingPlan:
    """A photo with a neutral caption, and another photo as its reference."""
    photos, token = data.photos, data.base.token
    captions = captions_of(settings, token)
    draw = generator("vico", data.macro_class, settings.seed)
    blocks = ImageBlocks(diffusion.unet, draw).to(diffusion.unet.device)

    def loss(batch: Batch, step_draw: torch.Generator) -> torch.Tensor:
        device, scheduler, count = diffusion.unet.device, diffusion.scheduler, len(batch.latents)
        reference = photos.sample(random_rows(len(photos.images), count, step_draw), step_draw)
        noise, reference_noise = (torch.randn(batch.latents.shape, generator=step_draw).to(device) for _ in range(2))
        t = torch.randint(scheduler.config.num_train_timesteps, (count,), generator=step_draw).to(device)
        unet = UNetWithReference(
            diffusion, blocks, reference, reference_noise, *positions(diffusion, batch.captions, token)
        )
        text = prompt_states(diffusion.tokenizer, diffusion.text_encoder, batch.captions)
        out = unet(scheduler.add_noise(batch.latents, noise, t), t, encoder_hidden_states=text).sample
        error = masked_error(out, diffusion_target(scheduler, batch.latents, noise, t), None)
        return (error * batch.weight.to(device)).sum() + settings.attention_weight * unet.regularisation

    return TrainingPlan(
        [TOKEN],
        {TOKEN: settings.token_lr, PREFIX: settings.lr},
        lambda step, step_draw: plain_batch(photos, captions, settings.batch_size, step_draw),
        start_vector(diffusion, settings.init_word or data.macro_class.split()[-1]),
        loss,
        {f"{PREFIX}{name}": value for name, value in blocks.named_parameters()},
    )


def load_blocks(diffusion: Diffusion, state: dict[str, torch.Tensor]) -> ImageBlocks:
    """The trained blocks of a state, on the model's device. Raises PersresError where they do not fit the model."""
    blocks = ImageBlocks(diffusion.unet)
    values = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    wanted = {name: value.shape for name, value in blocks.state_dict().items()}
    if {name: value.shape for name, value in values.items()} != wanted:
        raise PersresError("state is of another method or architecture: it has other image blocks; train it again")
    blocks.load_state_dict(values)
    return blocks.to(diffusion.unet.device, diffusion.unet.dtype).eval().requires_grad_(False)


class _ViCo(Rival):
    """Samples with the concept's first photo as the reference."""

    needs_photo = True

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """V*'s embedding and the new blocks, with the photo as the reference, noised with one noise for all steps."""
        state, _ = load_state(source.path)
        model_values = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
        predictor = _predictor(diffusion, load_blocks(diffusion, state), source)
        return replace(self.loaded(diffusion, source, state, model_values), predictor=predictor)


def _predictor(diffusion: Diffusion, blocks: ImageBlocks, source: LearnedFile) -> Callable[[list[ImageSpec]], Any]:
    photo = square(load_photo(source.photo), source.base.resolution)
    latents, _ = diffusion.posterior(to_tensor([photo]))
    noise = torch.randn(latents.shape, generator=generator("reference", source.concept)).to(latents.device)

    def predictor(images: list[ImageSpec]) -> UNetWithReference:
        prompts = [""] * len(images) + [image.prompt for image in images]
        sizes = (len(prompts), -1, -1, -1)
        tokens = positions(diffusion, prompts, source.base.token)
        return UNetWithReference(diffusion, blocks, latents.expand(sizes), noise.expand(sizes), *tokens)

    return predictor


METHOD = _ViCo("vico", ViCo, token_alone, plan)
