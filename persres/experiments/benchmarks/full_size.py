"""Seconds and memory of training and sampling of a full-size model with random weights on this machine.

The model is built from its config, since time and memory do not depend on the weights. Training and sampling use the functions of the
stages. Writes ``gpu.json`` or ``cpu.json`` and a table; the cost estimate reads the first.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.experiments.benchmarks.families import FAMILIES, Family
from persres.experiments.benchmarks.models import CLASS, ModelChoice, image_specs, random_pipeline
from persres.methods.ours import Ours
from persres.models.conditioning import Conditioning
from persres.models.diffusion import Diffusion, assembled
from persres.models.loading import pick_device
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.sampling.sample import Request, sample_batch
from persres.seeding import generator
from persres.training.residual_training import EncodedConcept, ResidualLoss, new_bank, train
from persres.units.files import write_atomic
from persres.units.provenance import measured


def random_diffusion(family: Family, base: Base, device: torch.device) -> Diffusion:
    """Return the family's model with random weights in ``base.dtype`` on the device."""
    return assembled(random_pipeline(family, base.dtype, device), base, device, cpu_offload=False)


def time_training(diffusion: Diffusion, base: Base, settings: Ours) -> tuple[ResidualBank, dict]:
    """Return the trained bank, and the seconds of one step: the median without the first step, which includes the warm-up."""
    device = diffusion.unet.device
    channels, factor = diffusion.latent_shape
    side = base.resolution // factor
    mean = torch.randn(4, channels, side, side, generator=generator("bench")).to(device)
    text: Conditioning = diffusion.encode([f"a photo of a {base.token} {CLASS}"])
    concept = EncodedConcept("bench", mean, torch.full_like(mean, 0.1), text)
    bank = new_bank(find_targets(diffusion.unet), [concept], settings).to(device)
    ends = [time.monotonic()]
    with measured(device) as facts:
        loss = ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings)
        train(loss, [concept], on_step=lambda step, value: ends.append(time.monotonic()))
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return bank, facts | {"step_s": statistics.median(steps[1:] or steps)}


def time_sampling(diffusion: Diffusion, base: Base, bank: ResidualBank, sampling: SamplingConfig, batch: int) -> dict:
    """Return the seconds of one image in a batch of this size, encoding and decoding included."""
    specs = image_specs(base, batch)
    if diffusion.unet.device.type == "cuda":  # warm-up: the first run selects and loads kernels
        sample_batch(diffusion, [Request(specs, sampling.model_copy(update={"steps": 1}), bank)], base.resolution)
    with measured(diffusion.unet.device) as facts:
        sample_batch(diffusion, [Request(specs, sampling, bank)], base.resolution)[0][0].cpu()
    return facts | {"image_s": facts["seconds"] / batch}


@dataclass(frozen=True)
class FullSizeSettings:
    """Training steps and batch size, sampling steps, and batch sizes of images."""

    train_steps: int = 5
    train_batch: int = 4
    steps: int = 50
    batches: tuple[int, ...] = (1, 4, 16)


def bench(family: Family, base: Base, device: str, settings: FullSizeSettings) -> dict:
    """Return seconds of a training step and of an image by batch size, without and with LAG, and the peak memory of each."""
    diffusion = random_diffusion(family, base, pick_device(device))
    ours = Ours(steps=settings.train_steps, batch_size=settings.train_batch)
    bank, trained = time_training(diffusion, base, ours)
    record = {
        "device": trained["device"],
        "dtype": base.dtype,
        "resolution": base.resolution,
        "versions": trained["versions"],
        "parameters": diffusion.parameter_count(),
        "train_batch": settings.train_batch,
        "train_steps": settings.train_steps,
        "sample_steps": settings.steps,
        "threads": torch.get_num_threads(),
        "train_step_s": round(trained["step_s"], 4),
        "image_s": {},
        "image_lag_s": {},
        "peak_mib": {"train": trained["peak_mib"]},
    }
    bank.requires_grad_(False)
    for batch in settings.batches:
        for key, lag in (("image", False), ("image_lag", True)):
            sampling = SamplingConfig(variant="bench", lag=lag, steps=settings.steps, images_per_prompt=1)
            facts = time_sampling(diffusion, base, bank, sampling, batch)
            record[f"{key}_s"][str(batch)] = round(facts["image_s"], 4)
            record["peak_mib"][f"{key}_{batch}"] = facts["peak_mib"]
    return record


def markdown(record: dict) -> str:
    """Return the record as a table. On a CPU the peak memory is the process's maximum so far."""
    peak, steps = record["peak_mib"], record["sample_steps"]
    rows = [(f"training step, batch {record['train_batch']}", record["train_step_s"], peak["train"])]
    for batch in record["image_s"]:
        for title, key in (("", "image"), (", LAG", "image_lag")):
            name = f"image, {steps} steps, batch {batch}{title}"
            rows.append((name, record[f"{key}_s"][batch], peak[f"{key}_{batch}"]))
    head = f"{record['family']}, {record['resolution']} px, {record['dtype']}, {record['device']}, random weights\n\n"
    lines = ["| what | seconds | peak MiB |", "|---|---|---|", *(f"| {a} | {b:.3f} | {c} |" for a, b, c in rows)]
    return head + "\n".join(lines) + "\n"


def run_full_size(
    choice: ModelChoice, device: str = "auto", settings: FullSizeSettings | None = None, out: Path = Path("data/bench")
) -> str:
    """Measure a family, write ``<out>/gpu`` or ``cpu`` as JSON and Markdown; return the table.

    Raises PersresError for an unknown family, and if memory does not suffice.
    """
    family = choice.name
    if family not in FAMILIES:
        raise PersresError(f"no family {family!r}; one of {', '.join(sorted(FAMILIES))}")
    base = Base(
        model=f"random {family}", resolution=choice.resolution or FAMILIES[family].resolution, dtype=choice.dtype
    )
    try:
        record = {"family": family} | bench(FAMILIES[family], base, device, settings or FullSizeSettings())
    except torch.OutOfMemoryError as error:
        raise PersresError(f"{error}; use a smaller batch, resolution or dtype") from error
    name = "cpu" if record["device"] == "cpu" else "gpu"
    write_atomic(out / f"{name}.json", json.dumps(record, indent=1).encode() + b"\n")
    write_atomic(out / f"{name}.md", markdown(record).encode())
    return markdown(record)
