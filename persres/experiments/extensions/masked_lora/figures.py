"""Pictures of the part ``loras``: a sheet to look at, and what each way of drawing buys."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from persres.experiments.evidence.figures import save
from persres.experiments.evidence.labels import Named, name_points
from persres.experiments.extensions.masked_lora.sampling import LoraSampleSpec
from persres.images import load_photo, unzip_images
from persres.prompts import fill
from persres.units.unit import Unit

CELL, GAP, TEXT = 128, 8, 18  # pixels
FIRST = ("base",)
OF_EACH = ("lora", "auto", "mask_auto", "paper", "disk", "inverted")
TITLES = {"base": "base", "lora": "LoRA", "auto": "confined", "mask_auto": "mask", "paper": "paper's masks", "disk": "disk", "inverted": "inverted"}  # fmt: skip


def image_sheet(units: list[Unit[LoraSampleSpec]], archives: list[Path], path: Path) -> None:
    """One concept: its photos, then for each variant's LoRA one prompt of each group, drawn in every way from the same noise."""
    font = ImageFont.load_default(13)
    spec, columns = units[0].spec, (*FIRST, *OF_EACH)
    rows = list({prompt.group: prompt for prompt in reversed(spec.prompts)}.values())[::-1]
    width = GAP + len(columns) * (CELL + GAP)
    height = TEXT + CELL + GAP + len(units) * (TEXT + len(rows) * (CELL + TEXT + GAP)) + GAP
    page = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(page), TEXT
    pen.text((GAP, 2), f"{spec.concept}: photos", fill="black", font=font)
    for place, photo in enumerate(spec.photos):
        page.paste(_cell(load_photo(Path(photo.path))), (GAP + place * (CELL + GAP), top))
    top += CELL + GAP
    for unit, archive in zip(units, archives, strict=True):
        pictures = unzip_images(archive)
        for place, column in enumerate(columns):
            said = f"{unit.spec.variant}: {TITLES[column]}" if place == 0 else TITLES[column]
            pen.text((GAP + place * (CELL + GAP), top), said, fill="black", font=font)
        top += TEXT
        for prompt in rows:
            pen.text((GAP, top), f"“{fill(prompt.text, spec.subject)}”", fill="black", font=font)
            for place, column in enumerate(columns):
                page.paste(_cell(pictures[f"{column}_{prompt.number:02d}.png"]), (GAP + place * (CELL + GAP), top + TEXT))  # fmt: skip
            top += CELL + TEXT + GAP
    page.crop((0, 0, width, top + GAP)).save(path)


def _cell(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)


def frontier_figure(ways: dict[str, dict], path: Path) -> None:
    """The object's DINO over the base model's against the background's change, one panel a variant: up and left is better."""
    figure, axes = plt.subplots(1, len(ways), figsize=(5.4 * len(ways), 4.6), sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    named = [(axis, _points(axis, by_way)) for axis, by_way in zip(axes[0], ways.values(), strict=True)]
    for axis, variant in zip(axes[0], ways, strict=True):
        axis.set(title=variant, xlabel="background change")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("DINO of the object over the base model's")
    for axis, points in named:
        name_points(axis, points, 9.5)
    save(figure, path)


def _points(axis: Axes, by_way: dict[str, dict]) -> list[Named]:
    named: list[Named] = []
    for way, found in by_way.items():
        x, y = found["background_change"], found["gained"]
        colour = "tab:red" if way == "auto" else "tab:blue"
        spread = [[[v["mean"] - v["low"]], [v["high"] - v["mean"]]] if v["low"] == v["low"] else None for v in (x, y)]
        axis.errorbar(x["mean"], y["mean"], xerr=spread[0], yerr=spread[1], color=colour, alpha=0.25, linewidth=1)
        axis.plot(x["mean"], y["mean"], "o", color=colour)
        named.append((way, (x["mean"], y["mean"]), colour))
    return sorted(named, key=lambda one: one[2] != "tab:red")  # ours gets its place first
