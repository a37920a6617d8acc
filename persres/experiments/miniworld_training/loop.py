"""One training loop for all mini models: seeded steps, cosine tail, EMA, checkpoints, resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from persres.experiments.miniworld_training.muon import Muon
from persres.seeding import seed_from
from persres.training.divergence import check_losses, check_weights, step_and_rate
from persres.units.checkpoints import load_training, save_training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """Training length and learning rate: linear warm-up over ``warmup`` steps, constant, then a cosine from ``decay_from`` (a share of
    ``steps``) to zero."""

    steps: int
    lr: float
    warmup: int = 100
    decay_from: float = 0.5
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    save_every: int = 250

    def rate(self, step: int) -> float:
        """Return the learning rate of a step after the warm-up, counted from 0."""
        start = self.decay_from * self.steps
        tail = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * tail)).item())
        return self.lr * cosine


Loss = Callable[[int, int], torch.Tensor]


def fit(
    name: str,
    model: nn.Module,
    loss: Loss,
    budget: Budget,
    folder: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    average_gradients: Callable[[nn.Module], None] | None = None,
    main_worker: bool = True,
    muon: tuple[str, ...] | None = None,
) -> nn.Module:
    """Minimise ``loss(step, step_seed)`` over the model's parameters with AdamW; returns the EMA copy. ``muon``: with Muon instead, except
    for parameters whose names start so.

    Random draws follow from the step's seed, so a resumed run equals an uninterrupted one. The main worker writes a checkpoint to
    ``folder/name.safetensors``. Raises DivergedError, before it is written, for NaN and infinity in loss or weights.
    """
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    averaged = {k: p.detach().clone() for k, p in trained.items()}
    if muon is None:
        optimizer = torch.optim.AdamW(trained.values(), budget.lr, (0.9, 0.99), weight_decay=budget.weight_decay)
    else:
        optimizer = Muon(trained.items(), budget.lr, muon, budget.weight_decay)
    state = averaged | {f"buffer.{k}": b for k, b in model.named_buffers() if b.is_floating_point()}
    path, start = folder / f"{name}.safetensors", 0
    if path.exists():
        start, _ = load_training(path, trained, optimizer, state)
    fresh = start if not optimizer.state else 0  # a checkpoint without optimizer state: warm up again
    clock, last = time.monotonic(), start
    for step in range(start, budget.steps):
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(step) * min(1.0, (step + 1 - fresh) / budget.warmup)
        step_seed = seed_from(name, seed, step)
        torch.manual_seed(step_seed)
        value = loss(step, step_seed)
        value.backward()
        if average_gradients is not None:
            average_gradients(model)
        nn.utils.clip_grad_norm_(trained.values(), budget.clip)
        optimizer.step()
        optimizer.zero_grad()
        momentum = min(budget.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.values()), list(trained.values()), 1 - momentum)
        if on_step is not None:
            on_step(step)
        done = step + 1
        if main_worker and (done % 50 == 0 or done == budget.steps):
            pace = (done - last) / (time.monotonic() - clock)
            clock, last = time.monotonic(), done
            log.info("%s %d/%d loss %.4f %.2f steps/s", name, done, budget.steps, value.item(), pace)
        if main_worker and (done % budget.save_every == 0 or done == budget.steps):
            at = step_and_rate(done, budget.steps, budget.lr)
            check_losses({name: value.item()}, at)
            check_weights({name: trained.values()}, at)
            save_training(path, trained, optimizer, done, state)
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(averaged[key])
    return model.eval()


def training_device() -> torch.device:
    """Return CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def images_to_tensor(images) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
