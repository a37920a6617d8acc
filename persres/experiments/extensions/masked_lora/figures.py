"""Figures of the study ``masked_lora``: a sheet of images, and identity against background change."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from persres.experiments.evidence.figures import Label, label_points, save
from persres.experiments.extensions.masked_lora.sampling import LoraSampleSpec
from persres.images import load_photo, unzip_images
from persres.prompts import fill
from persres.units.unit import Unit

CELL, GAP, TEXT = 128, 8, 18  # pixels
TITLES = {
    "base": "base",
    "lora": "LoRA",
    "auto": "masked",
    "mask_auto": "mask",
    "paper": "paper's masks",
    "disk": "disk",
    "inverted": "inverted",
}


def image_sheet(units: list[Unit[LoraSampleSpec]], archives: list[Path], path: Path) -> None:
    """Draw one concept: its photos, then for each variant one prompt of each group, by every config from the same noise."""
    spec, sheet = units[0].spec, _Sheet()
    prompts = list({prompt.group: prompt for prompt in reversed(spec.prompts)}.values())[::-1]
    sheet.text(f"{spec.concept}: photos", offset=2)
    sheet.top = TEXT
    sheet.row([load_photo(Path(photo.path)) for photo in spec.photos])
    for unit, archive in zip(units, archives, strict=True):
        images = unzip_images(archive)
        for column, title in enumerate(TITLES.values()):
            sheet.text(f"{unit.spec.variant}: {title}" if column == 0 else title, column)
        sheet.top += TEXT
        for prompt in prompts:
            sheet.text(f"“{fill(prompt.text, spec.subject)}”")
            sheet.top += TEXT
            sheet.row([images[f"{config}_{prompt.number:02d}.png"] for config in TITLES])
    sheet.save(path)


class _Sheet:
    """A white canvas that grows downwards; ``top`` is where the next line begins."""

    def __init__(self) -> None:
        self.width, self.top = GAP + len(TITLES) * (CELL + GAP), 0
        self.page = Image.new("RGB", (self.width, 16_000), "white")
        self.pen, self.font = ImageDraw.Draw(self.page), ImageFont.load_default(13)

    def text(self, text: str, column: int = 0, offset: int = 0) -> None:
        self.pen.text((GAP + column * (CELL + GAP), self.top + offset), text, fill="black", font=self.font)

    def row(self, images: list[Image.Image]) -> None:
        for column, image in enumerate(images):
            cell = image.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
            self.page.paste(cell, (GAP + column * (CELL + GAP), self.top))
        self.top += CELL + GAP

    def save(self, path: Path) -> None:
        self.page.crop((0, 0, self.width, self.top + GAP)).save(path)


def frontier_figure(summary: dict, path: Path) -> None:
    """Draw the object's DINO over the base model's against background change, one panel per variant."""
    variants = summary["configs"]
    figure, axes = plt.subplots(1, len(variants), figsize=(5.4 * len(variants), 4.6), sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    labels = [(axis, _draw_points(axis, scores)) for axis, scores in zip(axes[0], variants.values(), strict=True)]
    for axis, variant in zip(axes[0], variants, strict=True):
        axis.set(title=variant, xlabel="background change")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("DINO of the object over the base model's")
    for axis, points in labels:
        label_points(axis, points, 9.5)
    save(figure, path)


def _draw_points(axis: Axes, configs: dict[str, dict]) -> list[Label]:
    labels: list[Label] = []
    for name, scores in configs.items():
        x, y = scores["background_change"], scores["gained"]
        colour = "tab:red" if name == "auto" else "tab:blue"
        spread = [[[v["mean"] - v["low"]], [v["high"] - v["mean"]]] if v["low"] == v["low"] else None for v in (x, y)]
        axis.errorbar(x["mean"], y["mean"], xerr=spread[0], yerr=spread[1], color=colour, alpha=0.25, linewidth=1)
        axis.plot(x["mean"], y["mean"], "o", color=colour)
        labels.append((name, (x["mean"], y["mean"]), colour))
    return labels
