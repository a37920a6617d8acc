"""Learn residuals with the plain diffusion loss (paper equation 1, settings of 4.1).

Several concepts may be learned in one pass: their losses are added, no parameter is shared, and
every draw belongs to (concept, seed, step), so each concept learns what it would learn alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from safetensors import SafetensorError
from torch import nn

from persres.models.attention import cached_text_kv
from persres.models.conditioning import Conditioning, joined
from persres.residuals.bank import ResidualBank, Routing, residual_hooks
from persres.seeding import generator
from persres.training.early_stopping import EarlyStopping, fixed_draw
from persres.training.settings import ResidualSettings
from persres.units.checkpoints import load_training, save_training

logger = logging.getLogger(__name__)
StepDraws = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents, noise, timesteps


@dataclass(frozen=True)
class EncodedConcept:
    """What one concept is learned from.

    ``mean`` and ``std``: the autoencoder's posterior of the n reference images, [n, c, h, w], in the
    denoiser's scale. ``text``: the one embedded prompt, or a function that gives it where V*'s embedding learns too. ``name`` seeds the draws. ``prior``: class images to learn beside, at ``prior_weight``.
    """

    name: str
    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor | Conditioning | Callable[[], Conditioning]
    prior: EncodedConcept | None = None

    def states(self) -> Conditioning:
        """The embedded prompt as it stands now."""
        return Conditioning.of(self.text() if callable(self.text) else self.text)


class Texts:
    """The prompts of a batch, each for all of its samples. They are the very same tensor at every step, unless a text learns, so that
    whoever has read it need not read it again."""

    def __init__(self) -> None:
        self.made: dict[tuple, Conditioning] = {}

    def of(self, lessons: list[EncodedConcept], each: int) -> Conditioning:
        """Of ``each`` samples of every lesson, in order."""
        key = (each, *map(id, lessons))
        if key in self.made:
            return self.made[key]
        text = joined([lesson.states() for lesson in lessons]).each(lambda v: v.repeat_interleave(each, 0))
        if not any(callable(lesson.text) for lesson in lessons):
            self.made[key] = text
        return text


@dataclass
class Log:
    """One row a step, every value but the step's number a list by concept: the loss, None once the concept has stopped;
    ‖ΔW‖/‖W‖ by layer every ten steps; what :meth:`Settling.check` says."""

    rows: list[dict] = field(default_factory=list)


def diffusion_target(scheduler: DDIMScheduler, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the model should say: ε (equation 1), or v for models trained to predict it."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(z, noise, t)
    raise ValueError(f"unknown prediction_type {kind!r}")


def _draw(lesson: EncodedConcept, settings: ResidualSettings, step: int, timesteps: int) -> StepDraws:
    """Latents, noise and timesteps of one concept's step, [batch, ...]. Images go round in shuffled order."""
    count, batch = len(lesson.mean), settings.batch_size
    rows = []
    for position in range(step * batch, (step + 1) * batch):
        order = torch.randperm(count, generator=generator("epoch", lesson.name, settings.seed, position // count))
        rows.append(order[position % count])
    draw = generator("step", lesson.name, settings.seed, step)
    rows = torch.stack(rows).to(lesson.mean.device)
    shape = (batch, *lesson.mean.shape[1:])
    t = torch.randint(0, timesteps, (batch,), generator=draw)
    posterior, noise = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    z = lesson.mean[rows] + lesson.std[rows] * posterior.to(lesson.mean.device)
    return z, noise, t


def concept_losses(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    lessons: list[EncodedConcept],
    bank: ResidualBank,
    settings: ResidualSettings,
    step: int,
    rows: list[int] | None = None,
    texts: Texts | None = None,
) -> torch.Tensor:
    """Mean squared error of each concept at one step, [K], all in one pass through the U-Net. ``rows``: which of the bank's
    concepts the lessons are; none: all, in order. ``texts`` holds the prompts of the steps before."""
    drawn = [_draw(lesson, settings, step, scheduler.config.num_train_timesteps) for lesson in lessons]
    return _errors(unet, scheduler, lessons, bank, drawn, rows, texts)


def _errors(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    lessons: list[EncodedConcept],
    bank: ResidualBank,
    drawn: list[StepDraws],
    rows: list[int] | None = None,
    texts: Texts | None = None,
) -> torch.Tensor:
    """Mean squared error of each concept, [K], on as many draws of each."""
    device, each = lessons[0].mean.device, len(drawn[0][0])
    z, noise, t = (torch.cat(part).to(device) for part in zip(*drawn, strict=True))
    text = (texts or Texts()).of(lessons, each)
    rows = range(len(lessons)) if rows is None else rows
    routing = Routing(torch.tensor(list(rows), device=device).repeat_interleave(each), None)
    with residual_hooks(unet, bank, routing):
        out = unet(scheduler.add_noise(z, noise, t).to(text.states.dtype), t, **text.arguments()).sample
    error = F.mse_loss(out.float(), diffusion_target(scheduler, z, noise, t).float(), reduction="none")
    return error.flatten(1).mean(1).view(len(lessons), -1).mean(1)


def _losses(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    lessons: list[EncodedConcept],
    bank: ResidualBank,
    settings: ResidualSettings,
    step: int,
    rows: list[int],
    texts: Texts,
) -> torch.Tensor:
    """Each concept's loss with its class images', [K]. They are drawn under names of their own."""
    losses = concept_losses(unet, scheduler, lessons, bank, settings, step, rows, texts)
    if any(lesson.prior is None for lesson in lessons):
        return losses
    priors = [lesson.prior for lesson in lessons]
    return losses + settings.prior_weight * concept_losses(unet, scheduler, priors, bank, settings, step, rows, texts)


def new_bank(targets: list, lessons: list[EncodedConcept], settings: ResidualSettings) -> ResidualBank:
    """A bank with every concept's factors drawn from its own name and seed."""
    bank = ResidualBank(targets, len(lessons))
    for concept, lesson in enumerate(lessons):
        bank.initialise(concept, settings.init, settings.init_gain, generator("init", lesson.name, settings.seed))
    return bank


def early_stopping_of(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    lessons: list[EncodedConcept],
    bank: ResidualBank,
    settings: ResidualSettings,
) -> EarlyStopping:
    """The rule that says which concepts still learn, each measured by itself: a check knows no other concept of the bank."""

    @torch.no_grad()
    def measure(concept: int) -> float:
        lesson = lessons[concept]
        drawn = fixed_draw(lesson.name, lesson.mean, settings, scheduler.config.num_train_timesteps)
        return float(_errors(unet, scheduler, [lesson], bank, [drawn], [concept])[0])

    return EarlyStopping(settings, bank, measure)


def train(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    lessons: list[EncodedConcept],
    bank: ResidualBank,
    settings: ResidualSettings,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    extra: dict[str, nn.Parameter] | None = None,
) -> Log:
    """Train the bank in place, and ``extra`` parameters that the lessons' texts depend on; returns the log. The U-Net
    takes no gradient and is left as it was.

    With a checkpoint path the state is saved every ``settings.checkpoint_every`` steps, and a run that finds
    one goes on from it to the same bits as an unbroken run on the same machine. With ``stop: settled`` each concept's factors
    stay as they are once it has settled, and training ends when all have, or after ``settings.steps``.
    """
    unet.requires_grad_(False)
    parameters = dict(bank.named_parameters()) | (extra or {})
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    # Gradients pass the frozen model in its own precision; float16's range is too small for them as they are.
    scaler = torch.amp.GradScaler(unet.device.type, enabled=unet.dtype == torch.float16)
    log, start, note, rule = Log(), 0, {}, early_stopping_of(unet, scheduler, lessons, bank, settings)
    if checkpoint is not None and checkpoint.exists():
        try:
            start, note = load_training(checkpoint, parameters, optimizer)
            log.rows = note["rows"]
            scaler.load_state_dict(note["scaler"])
        except SafetensorError:
            logger.warning("%s is broken; starting from the first step", checkpoint)
    rule.begin(note.get("settling"))
    texts = Texts()
    with cached_text_kv(unet):
        for step in range(start, settings.steps):
            learning = rule.learning
            if not learning:
                break
            losses = _losses(unet, scheduler, [lessons[k] for k in learning], bank, settings, step, learning, texts)
            scaler.scale(losses.sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            rule.put_back()
            told = losses.tolist()
            log.rows.append(_row(unet, bank, settings, step, dict(zip(learning, told, strict=True)), rule))
            if on_step is not None:
                on_step(step, sum(told) / len(told))
            if checkpoint is not None and (step + 1) % settings.checkpoint_every == 0:
                note = {"rows": log.rows, "scaler": scaler.state_dict(), "settling": rule.state()}
                save_training(checkpoint, parameters, optimizer, step + 1, note=note)
    return log


def _row(
    unet: nn.Module,
    bank: ResidualBank,
    settings: ResidualSettings,
    step: int,
    losses: dict[int, float],
    rule: EarlyStopping,
) -> dict:
    """A step's row of the log; the rule looks here, so that a checkpoint after it holds what it said."""
    row = {"step": step, "loss": [losses.get(concept) for concept in range(bank.concepts)]}
    row |= rule.check(step + 1)
    if (step + 1) % 10 == 0 or step + 1 == settings.steps or "stopped" in row:
        row["norms"] = [bank.relative_norms(unet, concept) for concept in range(bank.concepts)]
    return row
