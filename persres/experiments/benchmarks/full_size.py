"""``persres dev full-size``: how long training and sampling take, and how much memory, on this machine.

Stable Diffusion v1.4 (or another family) at full size with random weights, built from its config: no hub is needed, and
time and memory do not depend on what the weights know. It trains and draws with the very functions of the stages. Writes
``gpu.json`` or ``cpu.json``, and the same as a table; ``persres estimate`` reads the first.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path

import torch

from persres.config.schema import Base, SamplingConfig
from persres.errors import PersresError
from persres.experiments.benchmarks.families import FAMILIES, Family
from persres.experiments.benchmarks.models import CLASS, image_specs, random_pipeline
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


def random_diffusion(family: Family, base: Base, place: torch.device) -> Diffusion:
    """The family's model with random weights in ``base.dtype`` on the device."""
    return assembled(random_pipeline(family, base.dtype, place), base, place, cpu_offload=False)


def time_training(diffusion: Diffusion, base: Base, settings: Ours) -> tuple[ResidualBank, dict]:
    """Seconds of one step: the median over all steps but the first, which also sets things up (of one step: itself)."""
    device = diffusion.unet.device
    channels, factor = diffusion.latent_shape
    side = base.resolution // factor
    mean = torch.randn(4, channels, side, side, generator=generator("bench")).to(device)
    text: Conditioning = diffusion.encode([f"a photo of a {base.token} {CLASS}"])
    lesson = EncodedConcept("bench", mean, torch.full_like(mean, 0.1), text)
    bank = new_bank(find_targets(diffusion.unet), [lesson], settings).to(device)
    ends = [time.monotonic()]
    with measured(device) as facts:
        loss = ResidualLoss(diffusion.unet, diffusion.scheduler, bank, settings)
        train(loss, [lesson], on_step=lambda step, value: ends.append(time.monotonic()))
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return bank, facts | {"step_s": statistics.median(steps[1:] or steps)}


def time_sampling(diffusion: Diffusion, base: Base, bank: ResidualBank, sampling: SamplingConfig, batch: int) -> dict:
    """Seconds of one picture, encoding and decoding included, in a batch of this size."""
    items = image_specs(base, batch)
    if diffusion.unet.device.type == "cuda":  # the first run there also chooses and loads kernels
        sample_batch(diffusion, [Request(items, sampling.model_copy(update={"steps": 1}), bank)], base.resolution)[0]
    with measured(diffusion.unet.device) as facts:
        sample_batch(diffusion, [Request(items, sampling, bank)], base.resolution)[0][0].cpu()
    return facts | {"image_s": facts["seconds"] / batch}


def bench(family: Family, base: Base, device: str, settings: Ours, steps: int, batches: list[int]) -> dict:
    """All figures: seconds of a training step and of a picture by batch size, without and with LAG; peak memory of each."""
    diffusion = random_diffusion(family, base, pick_device(device))
    bank, trained = time_training(diffusion, base, settings)
    found = {
        "device": trained["device"],
        "dtype": base.dtype,
        "resolution": base.resolution,
        "versions": trained["versions"],
        "parameters": diffusion.parameter_count(),
        "train_batch": settings.batch_size,
        "train_steps": settings.steps,
        "sample_steps": steps,
        "threads": torch.get_num_threads(),
        "train_step_s": round(trained["step_s"], 4),
        "image_s": {},
        "image_lag_s": {},
        "peak_mib": {"train": trained["peak_mib"]},
    }
    bank.requires_grad_(False)
    for batch in batches:
        for key, lag in (("image", False), ("image_lag", True)):
            sampling = SamplingConfig(variant="bench", lag=lag, steps=steps, images_per_prompt=1)
            drawn = time_sampling(diffusion, base, bank, sampling, batch)
            found[f"{key}_s"][str(batch)] = round(drawn["image_s"], 4)
            found["peak_mib"][f"{key}_{batch}"] = drawn["peak_mib"]
    return found


def markdown(found: dict) -> str:
    """The figures as a table. On a CPU the peak is the process's so far, so it never falls from row to row."""
    peak, steps = found["peak_mib"], found["sample_steps"]
    rows = [(f"training step, batch {found['train_batch']}", found["train_step_s"], peak["train"])]
    for batch in found["image_s"]:
        for title, key in (("", "image"), (", LAG", "image_lag")):
            rows.append(
                (f"picture, {steps} steps, batch {batch}{title}", found[f"{key}_s"][batch], peak[f"{key}_{batch}"])
            )
    head = f"{found['family']}, {found['resolution']} px, {found['dtype']}, {found['device']}, random weights\n\n"
    lines = ["| what | seconds | peak MiB |", "|---|---|---|", *(f"| {a} | {b:.3f} | {c} |" for a, b, c in rows)]
    return head + "\n".join(lines) + "\n"


def run_full_size(
    family: str,
    device: str = "auto",
    dtype: str = "float32",
    resolution: int | None = None,
    train_steps: int = 5,
    train_batch: int = 4,
    steps: int = 50,
    batches: tuple[int, ...] = (1, 4, 16),
    out: Path = Path("data/bench"),
) -> str:
    """Measure a family (none for ``resolution``: its own), write ``<out>/gpu`` or ``cpu`` as JSON and Markdown; returns the
    table. Raises PersresError for an unknown family and where memory does not suffice."""
    if family not in FAMILIES:
        raise PersresError(f"no family {family!r}; one of {', '.join(sorted(FAMILIES))}")
    base = Base(model=f"random {family}", resolution=resolution or FAMILIES[family].resolution, dtype=dtype)
    settings = Ours(steps=train_steps, batch_size=train_batch)
    try:
        found = {"family": family} | bench(FAMILIES[family], base, device, settings, steps, list(batches))
    except torch.OutOfMemoryError as error:
        raise PersresError(f"{error}; take a smaller batch, resolution or dtype") from error
    name = "cpu" if found["device"] == "cpu" else "gpu"
    write_atomic(out / f"{name}.json", json.dumps(found, indent=1).encode() + b"\n")
    write_atomic(out / f"{name}.md", markdown(found).encode())
    return markdown(found)
