"""Personalized residuals (the paper's method): low-rank residuals on output projections, V* frozen, no class images.

The paper's ablations are settings: other layers, a fixed rank, no class in the prompt, class images, a trained V*.

Modules that need torch or diffusers are imported where they are used: reading a profile needs the settings only, and must be quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persres.config.schema import Base
from persres.images import to_tensor
from persres.methods.common.base import LearnedFile, LoadedMethod, OnStep, TrainingData, TrainingResult
from persres.prompts import fill
from persres.training.settings import ResidualSettings

if TYPE_CHECKING:
    import torch

    from persres.models.conditioning import Conditioning
    from persres.models.diffusion import Diffusion
    from persres.residuals.bank import ResidualBank
    from persres.training.residual_training import EncodedConcept


SD14_PROJECTIONS = ((320, 5), (640, 5), (1280, 6))  # channels and number of Stable Diffusion v1.4's proj_out layers


class Ours(ResidualSettings):
    """The paper's values (3.2 and 4.1): 150 iterations, batch 4, learning rate 1e-3, rank 0.05·m."""

    method: Literal["ours"] = "ours"


def encode_concept(diffusion: Diffusion, data: TrainingData, settings: Ours) -> EncodedConcept:
    """The latents of the photos and the text states of the training prompt; the same of class images, if any."""
    from persres.training.frames import encode_framed
    from persres.training.residual_training import EncodedConcept

    phrase = METHOD.phrase(settings, data.base, data.macro_class)
    prompts = [fill(settings.prompt, phrase), fill(settings.prompt, data.macro_class)]
    both = diffusion.encode(prompts)
    text, plain = both.rows(0, 1), both.rows(1, 2)
    if settings.train_token:

        def text() -> Conditioning:
            return diffusion.states(prompts[:1])

    prior = None
    if data.class_images:
        images = data.class_images[: settings.num_class_images]
        prior = EncodedConcept(f"{data.concept}/prior", *diffusion.posterior(to_tensor(images)), plain)
    if not settings.whole_photos():
        return EncodedConcept(data.concept, *diffusion.posterior(to_tensor(data.photos)), text, prior)
    factor = diffusion.latent_shape[1]
    mean, std, frames = encode_framed(data.photos, data.base.resolution, settings.crop, factor, diffusion.posterior)
    return EncodedConcept(data.concept, mean, std, text, prior, frames)


@contextmanager
def _token(diffusion: Diffusion, base: Base, settings: Ours) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Within the context, V*'s embedding is a parameter, if it trains too; yields it by name."""
    if not settings.train_token:
        yield {}
        return
    from persres.models.weight_patching import TOKEN, patched_weights, trainable_copies

    token_id = diffusion.tokenizer.convert_tokens_to_ids(base.token)
    values = trainable_copies(diffusion, [TOKEN], token_id)
    with patched_weights(diffusion, values, token_id):
        yield values


def _save(bank: ResidualBank, concept: int, token: torch.Tensor | None, path: Path, info: dict[str, Any]) -> None:
    from persres.residuals.file import save_residual

    save_residual(path, bank.deltas(concept), info, token)


def _concept_log(rows: list[dict[str, Any]], concept: int) -> list[dict[str, Any]]:
    """The log of one concept, as in a separate run: it ends where the concept stopped, without norms of steps where others stopped."""
    log = []
    for row in rows:
        if row["loss"][concept] is None:
            break
        entry = {key: value if key == "step" else value[concept] for key, value in row.items()}
        if "stopped" in row and entry["stopped"] is None:
            del entry["stopped"]
            if (row["step"] + 1) % 10:
                del entry["norms"]
        log.append(entry)
    return log


class PersonalizedResiduals:
    """Implements :class:`persres.methods.common.base.Method`."""

    name = "ours"
    settings = Ours
    needs_photo = False
    batched_sampling = True

    def phrase(self, settings: Ours, base: Base, macro_class: str) -> str:
        """V* before the class; V* only in the ablation without the class."""
        return f"{base.token} {macro_class}" if settings.name_class else base.token

    def base_for(self, base: Base) -> Base:
        """The base model in its own precision; residuals train in float32."""
        return base

    def sd14_file_bytes(self, settings: Ours) -> int | None:
        """The size of the learned file on Stable Diffusion v1.4; None if not known."""
        if settings.target == "attn_kv":
            return None
        ranks = {m: settings.rank or max(1, round(settings.rank_ratio * m)) for m, _ in SD14_PROJECTIONS}
        return 4 * sum(2 * m * ranks[m] * count for m, count in SD14_PROJECTIONS)

    def refuses(self, settings: Ours, family: str) -> str | None:
        """``train_token`` for SDXL: V*'s embedding can train in one text encoder only."""
        from persres.models.base_model import SDXL

        return "train_token" if settings.train_token and family == SDXL else None

    def can_cpu_offload(self, settings: Ours) -> bool:
        """True unless V*'s embedding trains: then every step uses the text encoder."""
        return not settings.train_token

    def train(
        self, diffusion: Diffusion, data: TrainingData, settings: Ours, checkpoint: Path, on_step: OnStep
    ) -> TrainingResult:
        """Train for ``settings.steps``, or fewer with ``stop: early``."""
        return self.train_batched(diffusion, [data], settings, checkpoint, on_step)[0]

    def can_train_batched(self, settings: Ours, base: Base) -> bool:
        """False if V*'s embedding trains, which the concepts would share, and in float16, where one concept's overflow would make
        all of them skip a step."""
        return not settings.train_token and base.dtype != "float16"

    def train_batched(
        self, diffusion: Diffusion, data: list[TrainingData], settings: Ours, checkpoint: Path, on_step: OnStep
    ) -> list[TrainingResult]:
        """Train all concepts in one bank. They share no parameter, and every random draw depends on a concept's name."""
        from persres.models.weight_patching import TOKEN
        from persres.residuals.targets import find_targets
        from persres.training.residual_training import ResidualLoss, new_bank, train

        concepts = [encode_concept(diffusion, one, settings) for one in data]
        targets = find_targets(diffusion.unet, settings.rank_ratio, settings.rank, settings.target)
        bank = new_bank(targets, concepts, settings).to(diffusion.unet.device)
        loss = ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings)
        if data[0].previews is not None:
            from persres.training.previews import PreviewedConcept, PreviewSampler

            phrases = [(one, self.phrase(settings, one.base, one.macro_class)) for one in data]
            shown = [PreviewedConcept(one.concept, phrase, one.macro_class) for one, phrase in phrases]
            on_step = PreviewSampler(data[0].previews, diffusion, bank, shown, data[0].base.resolution).after(on_step)
        with _token(diffusion, data[0].base, settings) as extra:
            rows = train(loss, concepts, checkpoint, on_step, extra)
        parameters = bank.count() + sum(value.numel() for value in extra.values())
        return [
            TrainingResult(parameters, _concept_log(rows, index), partial(_save, bank, index, extra.get(TOKEN)))
            for index in range(len(concepts))
        ]

    def load(self, diffusion: Diffusion, source: LearnedFile, strength: float) -> LoadedMethod:
        """A bank of one concept, and V*'s embedding if it trained too."""
        from persres.models.weight_patching import TOKEN, patched_weights
        from persres.residuals.file import load_residual

        residual = load_residual(source.path)
        bank, token = residual.bank(diffusion.unet).scaled(strength), residual.token
        if token is None:
            return LoadedMethod(bank.count(), bank)
        token_id = diffusion.tokenizer.convert_tokens_to_ids(source.base.token)
        patch = partial(patched_weights, diffusion, {TOKEN: token}, token_id)
        return LoadedMethod(bank.count() + token.numel(), bank, patch, tensors={TOKEN: token})


METHOD = PersonalizedResiduals()
