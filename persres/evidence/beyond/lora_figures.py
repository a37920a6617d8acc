"""Pictures of the part ``loras``: a sheet to look at, and what each way of drawing buys."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFont

from persres.evidence.beyond.lora_drawn import DrawSpec
from persres.evidence.figures import save
from persres.images import load_photo, unzip_images
from persres.prompt_text import fill
from persres.runs.units import Unit

CELL, GAP, TEXT = 128, 8, 18  # pixels
FIRST = ("base",)
OF_EACH = ("lora", "auto", "mask_auto", "paper", "disk", "inverted")
TITLES = {"base": "base", "lora": "LoRA", "auto": "confined", "mask_auto": "mask", "paper": "paper's masks", "disk": "disk", "inverted": "inverted"}  # fmt: skip


def sheet(units: list[Unit[DrawSpec]], packs: list[Path], path: Path) -> None:
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
    for unit, pack in zip(units, packs, strict=True):
        pictures = unzip_images(pack)
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


def frontier(ways: dict[str, dict], path: Path) -> None:
    """The object's DINO over the base model's against the background's change, one panel a variant: up and left is better."""
    figure, axes = plt.subplots(1, len(ways), figsize=(5.2 * len(ways), 4.2), sharey=True, squeeze=False)
    for axis, (variant, by_way) in zip(axes[0], ways.items(), strict=True):
        for place, (way, found) in enumerate(by_way.items()):
            x, y = found["background_change"], found["gained"]
            spread = [[[v["mean"] - v["low"]], [v["high"] - v["mean"]]] if v["low"] == v["low"] else None for v in (x, y)]  # fmt: skip
            axis.errorbar(x["mean"], y["mean"], xerr=spread[0], yerr=spread[1], fmt="o", capsize=2, color=f"C{place}")
            axis.annotate(way, (x["mean"], y["mean"]), xytext=(5, 5), textcoords="offset points", fontsize=9)
        axis.set(title=variant, xlabel="background change")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("DINO of the object over the base model's")
    figure.tight_layout()
    save(figure, path)
