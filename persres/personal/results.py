"""What ``persres personalize`` leaves in its output folder: single images, the sheet, and facts for scripts."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from persres.config.schema import Base
from persres.images import unzip_bytes
from persres.personal.options import CONFIGS
from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.outputs import CLASSES, MacroClasses
from persres.untrusted.documents import read_json

log = logging.getLogger(__name__)
IMAGES, PREVIEWS = "images", "previews"
SINGLE_IMAGE = re.compile(rf"({'|'.join(CONFIGS)})_\d+_\d+\.png")
FACTOR = 8  # pixels per latent pixel of every Stable Diffusion


@dataclass(frozen=True)
class Result:
    """What a run made, as paths; ``confidence`` of a predicted class, None where it was given."""

    folder: Path
    name: str
    macro_class: str
    confidence: float | None
    residual: Path
    sheet: Path
    readme: Path
    images: list[Path]
    previews: list[Path]
    losses: list[float] = field(repr=False)

    def as_json(self) -> str:
        """For scripts."""
        return json.dumps(asdict(self), indent=1, default=str, ensure_ascii=False)


@dataclass(frozen=True)
class RunFolder:
    """A run of one concept: its stages' context, its name, the output folder, and whether it begins with nothing of its own there."""

    context: Context
    name: str
    folder: Path
    new: bool

    def macro_class(self) -> dict[str, Any]:
        """The concept's entry in macro_class.json."""
        path = self.context.data / "macro_class" / CLASSES
        return read_json(path, MacroClasses, "run again").concepts[self.name]

    @cached_property
    def losses(self) -> list[float]:
        """The loss of every step of the training."""
        lines = (self.context.data / "learned" / "ours" / f"{self.name}.log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def remove_old_previews(self, begun: float) -> None:
        """Remove the previews of an earlier training, of other settings; those of a killed run of the same ones stay."""
        for path in previews_of(self.folder, self.name).values() if self.new else ():
            if path.stat().st_mtime < begun:
                path.unlink()

    def result(self, out: Path) -> Result:
        """The finished run, its paths below ``out``."""
        entry, images = self.macro_class(), single_images(self.folder)
        return Result(
            folder=out,
            name=self.name,
            macro_class=entry["selected"],
            confidence=entry.get("confidence"),
            residual=out / f"{self.name}.safetensors",
            sheet=out / f"{self.name}.png",
            readme=out / "README.md",
            images=[out / IMAGES / path.name for path in images],
            previews=[out / PREVIEWS / path.name for path in previews_of(self.folder, self.name).values()],
            losses=self.losses,
        )


def write_images(run: RunFolder) -> None:
    """Write every sampled image as ``images/<config>_<prompt>_<image>.png``, and remove those of earlier prompts.

    Other files of the folder stay: ``persres generate`` writes into ``images/`` too, where it is called."""
    samples, written = run.context.data / "samples", set()
    for config in run.context.profile.sample.configs:
        for name, data in unzip_bytes(samples / config / f"{run.name}.zip").items():
            if "/" not in name:  # masks/ are in the sheet
                written.add(f"{config}_{name}")
                write_atomic(run.folder / IMAGES / f"{config}_{name}", data)
    for path in single_images(run.folder):
        if path.name not in written:
            path.unlink()
    log.info("%-15s %s", "images", run.folder / IMAGES)


def single_images(folder: Path) -> list[Path]:
    """The single images of an output folder, sorted."""
    return sorted(path for path in (folder / IMAGES).glob("*.png") if SINGLE_IMAGE.fullmatch(path.name))


def previews_of(folder: Path, name: str) -> dict[int, Path]:
    """The previews of a concept in an output folder by their number of steps."""
    paths = {path.stem.removeprefix(f"{name}_step_"): path for path in (folder / PREVIEWS).glob(f"{name}_step_*.png")}
    return {int(steps): path for steps, path in sorted(paths.items()) if steps.isdecimal()}


def write_sheet(run: RunFolder) -> None:
    """Write the sheet."""
    from persres.images import png_bytes
    from persres.report.personal_sheet import TrainingRecord, personal_sheet

    profile, path = run.context.profile, run.folder / f"{run.name}.png"
    crop = profile.train.variant("ours").crop
    record = TrainingRecord(
        run.losses, previews_of(run.folder, run.name), crop, latent_factor(profile.base) if crop == "bucket" else FACTOR
    )
    write_atomic(path, png_bytes(personal_sheet(run.context, record)))
    log.info("%-15s %s", "sheet", path)


def latent_factor(base: Base) -> int:
    """The pixels per latent pixel of a model, from its small files; Stable Diffusion's where they do not say."""
    from diffusers import AutoencoderKL

    from persres.models.base_model import config_source

    try:
        return 2 ** (
            len(AutoencoderKL.load_config(config_source(base.model), subfolder="vae")["block_out_channels"]) - 1
        )
    except (OSError, ValueError, KeyError, TypeError):
        return FACTOR
