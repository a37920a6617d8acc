"""The training loop of all rivals: seeded steps, the plain diffusion loss, checkpoints, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from persres.config.schema import VariantSettings
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import prompt_states
from persres.models.weight_patching import TOKEN, patched_weights, trainable_copies
from persres.seeding import generator
from persres.training.batches import Batch, TrainingPlan, masked_error
from persres.training.divergence import check_losses, check_weights, step_and_rate
from persres.training.residual_training import diffusion_target
from persres.units.checkpoints import resume_training, save_training


def _parameter_groups(values: dict[str, nn.Parameter], lrs: dict[str, float]) -> list[dict]:
    """Optimizer groups: each parameter has the learning rate of its longest matching prefix."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, value in values.items():
        prefix = max((p for p in lrs if name.startswith(p)), key=len)
        groups.setdefault(prefix, []).append(value)
    return [{"params": members, "lr": lrs[prefix]} for prefix, members in groups.items()]


def batch_loss(diffusion: Diffusion, batch: Batch, draw: torch.Generator) -> torch.Tensor:
    """Σ weight · mean squared error (paper equation 1), with gradients through the text encoder if it trains."""
    device, scheduler = diffusion.unet.device, diffusion.scheduler
    noise = torch.randn(batch.latents.shape, generator=draw).to(device)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(batch.latents),), generator=draw).to(device)
    text = prompt_states(diffusion.tokenizer, diffusion.text_encoder, batch.captions)
    out = diffusion.unet(scheduler.add_noise(batch.latents, noise, t), t, encoder_hidden_states=text).sample
    error = masked_error(out, diffusion_target(scheduler, batch.latents, noise, t), batch.valid)
    return (error * batch.weight.to(device)).sum()


@dataclass(frozen=True)
class TrainingRun:
    """Which concept trains, with V*'s token id, and where progress goes: ``checkpoint`` file, ``on_step(step, loss)``."""

    concept: str
    token_id: int
    checkpoint: Path | None = None
    on_step: Callable[[int, float], None] | None = None


def train_weights(
    diffusion: Diffusion, plan: TrainingPlan, settings: VariantSettings, run: TrainingRun
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train the parameters of the plan; returns their state and one log row per step. The model itself does not change.

    A run that finds a checkpoint resumes to the same bits as an uninterrupted run on the same machine.
    Raises DivergedError at the first loss that is not finite.
    """
    model_values = trainable_copies(diffusion, plan.names, run.token_id)
    if plan.token is not None:
        model_values[TOKEN].data.copy_(plan.token)
    values = model_values | plan.new
    optimizer = torch.optim.AdamW(_parameter_groups(values, plan.lrs), weight_decay=settings.weight_decay)
    start, note = resume_training(run.checkpoint, values, optimizer)
    rows = note.get("rows", [])
    with patched_weights(diffusion, model_values, run.token_id):
        for step in range(start, settings.steps):
            draw = generator("rival", run.concept, settings.seed, step)
            batch = plan.batch(step, draw)
            loss = batch_loss(diffusion, batch, draw) if plan.loss is None else plan.loss(batch, draw)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append({"step": step, "loss": loss.item()})
            check_losses({run.concept: rows[-1]["loss"]}, step_and_rate(step + 1, settings.steps, plan.lrs))
            if run.on_step is not None:
                run.on_step(step, rows[-1]["loss"])
            if run.checkpoint is not None and (step + 1) % settings.checkpoint_every == 0:
                check_weights({run.concept: values.values()}, step_and_rate(step + 1, settings.steps, plan.lrs))
                save_training(run.checkpoint, values, optimizer, step + 1, note={"rows": rows})
    check_weights({run.concept: values.values()}, step_and_rate(len(rows), settings.steps, plan.lrs))
    return {name: value.detach().cpu() for name, value in values.items()}, rows
