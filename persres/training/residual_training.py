"""Trains residuals with the plain diffusion loss (paper equation 1; settings of section 4.1).

Several concepts may train in one batch. Their losses are added and they share no parameter. Every random draw depends on
(concept, seed, step), so each concept gets the result of a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import nn

from persres.errors import PersresError
from persres.models.attention import cached_text_kv
from persres.models.conditioning import Conditioning, joined
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.seeding import generator
from persres.training.divergence import check_losses, check_weights, step_and_rate
from persres.training.early_stopping import EarlyStopping, fixed_draws, fixed_photos
from persres.training.frames import Frames, by_size, mean_error, samples_of, sized
from persres.training.settings import ResidualSettings
from persres.units.checkpoints import resume_training, save_training

StepDraws = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents, noise, timesteps


@dataclass(frozen=True)
class EncodedConcept:
    """The latents and text states that one concept trains on.

    ``mean`` and ``std``: the autoencoder's posterior of the n reference images, [n, c, h, w], in the denoiser's scale. ``text``: the
    text states of the prompt, or a function that returns them if V*'s embedding trains too. ``name`` seeds the random draws.
    ``prior``: class images, weighted by ``prior_weight``. ``frames``: of photos that are no plain squares; their latents lie on a canvas.
    """

    name: str
    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor | Conditioning | Callable[[], Conditioning]
    prior: EncodedConcept | None = None
    frames: Frames | None = None

    def states(self) -> Conditioning:
        """The current text states of the prompt."""
        return Conditioning.of(self.text() if callable(self.text) else self.text)


class TextCache:
    """Text states by batch of concepts. Unless a text trains, every step gets the same tensor, so its keys and values stay cached."""

    def __init__(self) -> None:
        self.cached: dict[tuple, Conditioning] = {}

    def states(self, concepts: list[EncodedConcept], repeats: int) -> Conditioning:
        """The text states of each concept, ``repeats`` times, in order."""
        key = (repeats, *map(id, concepts))
        if key in self.cached:
            return self.cached[key]
        text = joined([concept.states() for concept in concepts]).each(lambda v: v.repeat_interleave(repeats, 0))
        if not any(callable(concept.text) for concept in concepts):
            self.cached[key] = text
        return text


def diffusion_target(scheduler: DDIMScheduler, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The training target: ε (equation 1), or v for models with v-prediction."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(z, noise, t)
    raise ValueError(f"unknown prediction_type {kind!r}")


def step_photos(concept: EncodedConcept, settings: ResidualSettings, step: int) -> list[int]:
    """The photos of one concept's step, [batch]. Every epoch shuffles them anew."""
    count, batch = len(concept.mean), settings.batch_size
    photos = []
    for position in range(step * batch, (step + 1) * batch):
        order = torch.randperm(count, generator=generator("epoch", concept.name, settings.seed, position // count))
        photos.append(int(order[position % count]))
    return photos


def step_draws(concept: EncodedConcept, settings: ResidualSettings, step: int, timesteps: int) -> StepDraws:
    """Latents, noise and timesteps of one concept's step, [batch, ...]."""
    batch, draw = settings.batch_size, generator("step", concept.name, settings.seed, step)
    rows = torch.tensor(step_photos(concept, settings, step)).to(concept.mean.device)
    shape = (batch, *concept.mean.shape[1:])
    t = torch.randint(0, timesteps, (batch,), generator=draw)
    posterior, noise = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    z = concept.mean[rows] + concept.std[rows] * posterior.to(concept.mean.device)
    return z, noise, t


@dataclass(frozen=True)
class ResidualLoss:
    """The loss of concepts under the residuals of ``bank``. In its methods, ``rows`` are the concepts' indices in the bank; the
    default is all, in order."""

    unet: nn.Module
    scheduler: DDIMScheduler
    bank: ResidualBank
    settings: ResidualSettings
    texts: TextCache = field(default_factory=TextCache)

    @property
    def timesteps(self) -> int:
        """The number of timesteps that the model was trained with."""
        return self.scheduler.config.num_train_timesteps

    def at_step(self, concepts: list[EncodedConcept], step: int, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Mean squared error of each concept at one step, [K], in one U-Net pass; without class images."""
        draws = [step_draws(concept, self.settings, step, self.timesteps) for concept in concepts]
        photos = [step_photos(concept, self.settings, step) for concept in concepts]
        return self.at_draws(concepts, draws, rows, photos)

    def with_prior(self, concepts: list[EncodedConcept], step: int, rows: Sequence[int]) -> torch.Tensor:
        """:meth:`at_step` plus the weighted loss of the class images, [K]. Class images have draws of their own."""
        losses = self.at_step(concepts, step, rows)
        if any(concept.prior is None for concept in concepts):
            return losses
        priors = [concept.prior for concept in concepts]
        return losses + self.settings.prior_weight * self.at_step(priors, step, rows)

    def at_draws(
        self,
        concepts: list[EncodedConcept],
        draws: list[StepDraws],
        rows: Sequence[int] | None = None,
        photos: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """Mean squared error of each concept, [K], at given draws, as many for each. ``photos``: whose draws they are, for frames."""
        if photos is not None and any(concept.frames is not None for concept in concepts):
            return self._framed(concepts, draws, range(len(concepts)) if rows is None else rows, photos)
        device, repeats = concepts[0].mean.device, len(draws[0][0])
        z, noise, t = (torch.cat(part).to(device) for part in zip(*draws, strict=True))
        text = self.texts.states(concepts, repeats)
        rows = range(len(concepts)) if rows is None else rows
        routing = Routing(torch.tensor([list(rows)], device=device).repeat_interleave(repeats, 1), None)
        error = self._errors((z, noise, t), text, routing)
        return error.flatten(1).mean(1).view(len(concepts), -1).mean(1)

    def _framed(
        self,
        concepts: list[EncodedConcept],
        draws: list[StepDraws],
        rows: Sequence[int],
        photos: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """:meth:`at_draws` of photos of several sizes: one pass for the images of each size."""
        device, repeats = concepts[0].mean.device, len(photos[0])
        text = self.texts.states(concepts, repeats)
        samples, latents = [], []
        for concept, shown, (z, noise, t) in zip(concepts, photos, draws, strict=True):
            samples += samples_of(concept.frames, shown, tuple(z.shape[-2:]), len(samples))
            latents += zip(z, noise, t, strict=True)
        errors: dict[int, torch.Tensor] = {}
        for group in by_size(samples):
            (height, width), numbers = group[0].size, [sample.number for sample in group]
            z, noise = (torch.stack([latents[i][part][:, :height, :width] for i in numbers]) for part in range(2))
            t = torch.stack([latents[i][2] for i in numbers])
            routing = Routing(torch.tensor([[rows[i // repeats] for i in numbers]], device=device), None)
            error = self._errors((z.to(device), noise.to(device), t.to(device)), sized(text, group), routing)
            errors |= dict(zip(numbers, mean_error(error, group), strict=True))
        return torch.stack([errors[i] for i in range(len(samples))]).view(len(concepts), -1).mean(1)

    def _errors(self, draws: StepDraws, text: Conditioning, routing: Routing) -> torch.Tensor:
        """Squared errors [n, c, h, w] of one pass."""
        z, noise, t = draws
        with residual_hooks(self.unet, self.bank, routing):
            out = self.unet(self.scheduler.add_noise(z, noise, t).to(text.states.dtype), t, **text.arguments()).sample
        return F.mse_loss(out.float(), diffusion_target(self.scheduler, z, noise, t).float(), reduction="none")

    def early_stopping(self, concepts: list[EncodedConcept]) -> EarlyStopping:
        """The rule that stops concepts early. A check reads one concept only."""

        @torch.no_grad()
        def measure(index: int) -> float:
            concept = concepts[index]
            draws = fixed_draws(concept.name, concept.mean, self.settings, self.timesteps)
            photos = fixed_photos(len(concept.mean), self.settings)
            return float(self.at_draws([concept], [draws], [index], [photos])[0])

        return EarlyStopping(self.settings, self.bank, measure)


def new_bank(targets: list, concepts: list[EncodedConcept], settings: ResidualSettings) -> ResidualBank:
    """A bank whose factors are initialised from each concept's name and the seed."""
    bank = ResidualBank(targets, len(concepts))
    for index, concept in enumerate(concepts):
        bank.initialise(index, settings.init, settings.init_gain, generator("init", concept.name, settings.seed))
    return bank


@dataclass
class TrainingState:
    """What changes during training: optimizer, gradient scaler, early stopping and the log; a checkpoint holds all of it."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    # One row a step; every value but the step number is a list by concept: the loss, None after the concept stopped;
    # ‖ΔW‖/‖W‖ by layer every ten steps; the entries of EarlyStopping.check.
    rows: list[dict] = field(default_factory=list)

    def resume(self, checkpoint: Path | None) -> int:
        """Load the checkpoint, if there is one; returns the first step to run."""
        start, note = resume_training(checkpoint, self.parameters, self.optimizer)
        if note:
            self.rows = note["rows"]
            self.scaler.load_state_dict(note["scaler"])
        self.stopping.begin(note.get("early_stopping"))
        return start

    def save(self, checkpoint: Path, step: int) -> None:
        """Write the checkpoint after ``step`` steps."""
        note = {
            "rows": self.rows,
            "scaler": self.scaler.state_dict(),
            "early_stopping": self.stopping.state(),
        }
        save_training(checkpoint, self.parameters, self.optimizer, step, note=note)

    def check(self, names: list[str], at: str) -> None:
        """Raise DivergedError where a concept's factors, or what trains next to them, are not finite."""
        bank = list(self.stopping.bank.parameters())
        others = [value for value in self.parameters.values() if not any(value is factor for factor in bank)]
        check_weights({name: [*others, *(f[k] for f in bank)] for k, name in enumerate(names)}, at)

    def update(self, loss: torch.Tensor) -> None:
        """One step of the optimizer. Concepts that have stopped keep their factors."""
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.stopping.restore()


def _new_state(
    loss: ResidualLoss, concepts: list[EncodedConcept], extra: dict[str, nn.Parameter] | None
) -> TrainingState:
    settings, unet = loss.settings, loss.unet
    parameters = dict(loss.bank.named_parameters()) | (extra or {})
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    # Gradients pass the frozen model in its own precision; the range of float16 is too small for unscaled ones.
    scaler = torch.amp.GradScaler(unet.device.type, enabled=unet.dtype == torch.float16)
    return TrainingState(parameters, optimizer, scaler, loss.early_stopping(concepts))


def _check_checkpointing(loss: ResidualLoss) -> None:
    """Raises PersresError for gradient checkpointing of layers with a residual: the recomputation would run without it."""
    if loss.unet.is_gradient_checkpointing and any(".transformer_blocks." in t.path for t in loss.bank.targets):
        raise PersresError(
            f"target: {loss.settings.target} cannot train with gradient checkpointing; set runtime.gradient_checkpointing: false"
        )


def train(
    loss: ResidualLoss,
    concepts: list[EncodedConcept],
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    extra: dict[str, nn.Parameter] | None = None,
) -> list[dict]:
    """Train the bank in place and return the log; see :class:`TrainingState` for its rows.

    ``extra`` parameters train too; the concepts' texts may depend on them. The U-Net gets no gradient and does not change.

    With a checkpoint path, the state is saved every ``settings.checkpoint_every`` steps. A run that finds a checkpoint resumes
    to the same bits as an uninterrupted run on the same machine. With ``stop: early`` each concept's factors stay fixed after it has
    stopped. Training ends when all concepts have stopped, or after ``settings.steps``.

    Raises PersresError for gradient checkpointing of layers with a residual, and DivergedError at the first loss that is not finite.
    """
    settings, unet = loss.settings, loss.unet
    _check_checkpointing(loss)
    unet.requires_grad_(False)
    state, names = _new_state(loss, concepts, extra), [concept.name for concept in concepts]
    with cached_text_kv(unet):
        for step in range(state.resume(checkpoint), settings.steps):
            active = state.stopping.active
            if not active:
                break
            losses = loss.with_prior([concepts[k] for k in active], step, active)
            state.update(losses.sum())
            values = losses.tolist()
            row = _row(loss, step, dict(zip(active, values, strict=True)), state.stopping)
            for measured in filter(None, (row["loss"], row.get("fixed_loss"))):
                check_losses(
                    dict(zip(names, measured, strict=True)), step_and_rate(step + 1, settings.steps, settings.lr)
                )
            state.rows.append(row)
            if on_step is not None:
                on_step(step, sum(values) / len(values))
            if checkpoint is not None and (step + 1) % settings.checkpoint_every == 0:
                state.check(names, step_and_rate(step + 1, settings.steps, settings.lr))
                state.save(checkpoint, step + 1)
    state.check(names, step_and_rate(len(state.rows), settings.steps, settings.lr))
    return state.rows


def _row(loss: ResidualLoss, step: int, losses: dict[int, float], stopping: EarlyStopping) -> dict:
    """The log row of a step. The early-stopping check runs here, so that the checkpoint after it includes its result."""
    bank = loss.bank
    row = {"step": step, "loss": [losses.get(concept) for concept in range(bank.concepts)]}
    row |= stopping.check(step + 1)
    if (step + 1) % 10 == 0 or step + 1 == loss.settings.steps or "stopped" in row:
        row["norms"] = [bank.relative_norms(loss.unet, concept) for concept in range(bank.concepts)]
    return row
