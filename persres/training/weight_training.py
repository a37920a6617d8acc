"""One training loop for all rivals: seeded steps, the plain diffusion loss, checkpoints, resume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from persres.config.schema import VariantSettings
from persres.models.diffusion import Diffusion
from persres.models.text_encoding import prompt_states
from persres.models.weight_patching import TOKEN, patched_weights, trainable_copies
from persres.seeding import generator
from persres.training.batches import Batch, Plan, masked_error
from persres.training.residual_training import diffusion_target
from persres.units.checkpoints import load_training, save_training

log = logging.getLogger(__name__)


def _groups(values: dict[str, nn.Parameter], rates: dict[str, float]) -> list[dict]:
    """Optimizer groups: each weight at the rate of the longest prefix that names it."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, value in values.items():
        prefix = max((p for p in rates if name.startswith(p)), key=len)
        groups.setdefault(prefix, []).append(value)
    return [{"params": members, "lr": rates[prefix]} for prefix, members in groups.items()]


def batch_loss(diffusion: Diffusion, batch: Batch, draw: torch.Generator) -> torch.Tensor:
    """Σ weight · mean squared error (paper equation 1), with gradients through the text tower where it trains."""
    device, scheduler = diffusion.unet.device, diffusion.scheduler
    noise = torch.randn(batch.latents.shape, generator=draw).to(device)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(batch.latents),), generator=draw).to(device)
    text = prompt_states(diffusion.tokenizer, diffusion.text_encoder, batch.captions)
    out = diffusion.unet(scheduler.add_noise(batch.latents, noise, t), t, encoder_hidden_states=text).sample
    error = masked_error(out, diffusion_target(scheduler, batch.latents, noise, t), batch.valid)
    return (error * batch.weight.to(device)).sum()


def train_weights(
    diffusion: Diffusion,
    plan: Plan,
    settings: VariantSettings,
    concept: str,
    token_id: int,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train what the plan names; returns its state and a log row a step. The shared model is left as it was.

    A run that finds a checkpoint goes on from it to the same bits as an unbroken run on the same machine.
    """
    own = trainable_copies(diffusion, plan.names, token_id)
    if plan.token is not None:
        own[TOKEN].data.copy_(plan.token)
    values = own | plan.new
    optimizer = torch.optim.AdamW(_groups(values, plan.rates), weight_decay=settings.weight_decay)
    start, rows = 0, []
    if checkpoint is not None and checkpoint.exists():
        try:
            start, note = load_training(checkpoint, values, optimizer)
            rows = note["rows"]
        except SafetensorError:
            log.warning("%s is broken; starting from the first step", checkpoint)
    with patched_weights(diffusion, own, token_id):
        for step in range(start, settings.steps):
            draw = generator("rival", concept, settings.seed, step)
            batch = plan.batch(step, draw)
            loss = batch_loss(diffusion, batch, draw) if plan.loss is None else plan.loss(batch, draw)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rows.append({"step": step, "loss": loss.item()})
            if on_step is not None:
                on_step(step, rows[-1]["loss"])
            if checkpoint is not None and (step + 1) % settings.checkpoint_every == 0:
                save_training(checkpoint, values, optimizer, step + 1, note={"rows": rows})
    return {name: value.detach().cpu() for name, value in values.items()}, rows
