"""Figures of the study ``multi_concept``: a sheet of images by config, and the scores."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # workers have no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import reference_photos
from persres.experiments.evidence.figures import Label, label_points, save
from persres.experiments.extensions.multi_concept.cases import Case
from persres.experiments.extensions.multi_concept.sampling import SampledImages
from persres.images import load_photo, square
from persres.units.context import Context

CELL, GAP, HEAD = 112, 4, 18  # pixels
ROWS = 12
SHOWN = ("base", "added", "merged", "halves", "halves_back", "ours")
MASK_COLOURS = ((230, 60, 60), (60, 150, 240), (80, 200, 90), (240, 200, 60))


def image_sheet(context: Context, cases: list[Case], sampled: dict[str, SampledImages], path: Path) -> None:
    """Draw the first image of the first twelve pairs: references, every config from the same noise, and our masks."""
    first = {case.group: i for i, case in reversed(list(enumerate(cases)))}
    rows = sorted(first.values())[:ROWS]
    titles = ["first", "second", *SHOWN, "red 1st, blue 2nd"]
    canvas = Image.new("RGB", (len(titles) * (CELL + GAP), HEAD + len(rows) * (CELL + GAP + HEAD)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        pen.text((column * (CELL + GAP), 2), title, fill="black", font=font)
    for row, i in enumerate(rows):
        top = HEAD + row * (CELL + GAP + HEAD)
        pen.text((0, top + 2), f"“{cases[i].plain}”: {', '.join(cases[i].names)}", fill="black", font=font)
        for column, image in enumerate(_row(context, cases[i], i, sampled)):
            canvas.paste(image.resize((CELL, CELL), Image.NEAREST), (column * (CELL + GAP), top + HEAD))
    canvas.save(path)


def _row(context: Context, case: Case, i: int, sampled: dict[str, SampledImages]) -> list[Image.Image]:
    concepts, side = context.data / "concepts", context.profile.base.resolution
    references = [square(load_photo(reference_photos(concepts / name)[0]), side) for name in case.names[:2]]
    images = [Image.fromarray(sampled[config].images[i]) for config in SHOWN]
    return [*references, *images, coloured_masks(sampled["ours"].masks[i])]


def coloured_masks(masks: np.ndarray) -> Image.Image:
    """Return masks [K, s, s] in [0, 1] as one image, one colour each."""
    colours = np.array(MASK_COLOURS[: len(masks)], dtype=float)
    return Image.fromarray(np.einsum("khw,kc->hwc", masks, colours).clip(0, 255).astype(np.uint8))


POINT_COLOURS = {
    "ours": "tab:red",
    "swapped": "darkgrey",
    "one_zeroed": "darkgrey",
}  # grey: negative controls; others blue
POINT_LABELS = {
    "base": "base model", "added": "added", "merged": "Custom Diffusion, merged", "halves": "halves, prompt order",
    "halves_back": "halves, other order", "halves_best": "better halves", "one_mask": "one mask", "per_block_median": "per block, median",
    "ours": "ours", "swapped": "masks swapped", "one_zeroed": "second zeroed",
}  # fmt: skip
AXES = {
    "leakage": "identity leakage (DINO with the other concept)",
    "worse": "worse identity of the two (DINO)",
    "background_change": "background change",
    "contrast": "identity contrast",
}


def scores_figure(summary: dict, path: Path) -> None:
    """Draw the worse identity against leakage, and identity contrast against background change."""
    figure, axes = plt.subplots(1, 2, figsize=(15, 6.4), layout="constrained")
    figure.suptitle("up and left is better; bars: 95% intervals over pairs; grey: negative controls")
    pairs = (("leakage", "worse"), ("background_change", "contrast"))
    labels = [
        (axis, _draw_points(axis, summary["configs"], *columns)) for axis, columns in zip(axes, pairs, strict=True)
    ]
    for axis, points in labels:
        label_points(axis, points, 9.5)
    save(figure, path)


def _draw_points(axis: Axes, configs: dict[str, dict], x: str, y: str) -> list[Label]:
    labels: list[Label] = []
    for name, label in POINT_LABELS.items():
        scores = configs.get(name)
        if scores is None or scores[x]["mean"] is None or scores[y]["mean"] is None:
            continue
        at, colour = (scores[x]["mean"], scores[y]["mean"]), POINT_COLOURS.get(name, "tab:blue")
        axis.errorbar(*at, xerr=_spread(scores[x]), yerr=_spread(scores[y]), color=colour, alpha=0.25, linewidth=1)
        axis.plot(*at, "o", color=colour)
        labels.append((label, at, colour))
    axis.set(xlabel=AXES[x], ylabel=AXES[y])
    axis.grid(alpha=0.3)
    return labels


def _spread(score: dict) -> list | None:
    if score["low"] is None:
        return None
    return [[score["mean"] - score["low"]], [score["high"] - score["mean"]]]
