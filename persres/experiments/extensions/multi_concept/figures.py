"""What several concepts look like by every method, on one sheet; and what each method scores."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import reference_photos
from persres.experiments.evidence.figures import save
from persres.experiments.evidence.labels import Named, name_points
from persres.experiments.extensions.multi_concept.cases import Case
from persres.experiments.extensions.multi_concept.sampling import SampledImages
from persres.images import load_photo, square
from persres.units.context import Context

CELL, GAP, HEAD = 112, 4, 18  # pixels
ROWS = 12
SHOWN = ("base", "added", "merged", "halves", "halves_back", "ours")
COLOURS = ((230, 60, 60), (60, 150, 240), (80, 200, 90), (240, 200, 60))


def image_sheet(context: Context, cases: list[Case], drawn: dict[str, SampledImages], path: Path) -> None:
    """The first picture of up to twelve pairs, not chosen: references, every method from the same noise, our masks (red the prompt's first
    concept, blue its second)."""
    first = {case.group: i for i, case in reversed(list(enumerate(cases)))}
    chosen = sorted(first.values())[:ROWS]
    titles = ["first", "second", *SHOWN, "red 1st, blue 2nd"]
    canvas = Image.new("RGB", (len(titles) * (CELL + GAP), HEAD + len(chosen) * (CELL + GAP + HEAD)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        pen.text((column * (CELL + GAP), 2), title, fill="black", font=font)
    for row, i in enumerate(chosen):
        top = HEAD + row * (CELL + GAP + HEAD)
        pen.text((0, top + 2), f"“{cases[i].plain}”: {', '.join(cases[i].names)}", fill="black", font=font)
        for column, picture in enumerate(_row(context, cases[i], i, drawn)):
            canvas.paste(picture.resize((CELL, CELL), Image.NEAREST), (column * (CELL + GAP), top + HEAD))
    canvas.save(path)


def _row(context: Context, case: Case, i: int, drawn: dict[str, SampledImages]) -> list[Image.Image]:
    concepts, side = context.data / "concepts", context.profile.base.resolution
    references = [square(load_photo(reference_photos(concepts / name)[0]), side) for name in case.names[:2]]
    pictures = [Image.fromarray(drawn[method].images[i]) for method in SHOWN]
    return [*references, *pictures, coloured(drawn["ours"].masks[i])]


def coloured(masks: np.ndarray) -> Image.Image:
    """Masks [K, s, s] in [0, 1], a colour each."""
    colours = np.array(COLOURS[: len(masks)], dtype=float)
    return Image.fromarray(np.einsum("khw,kc->hwc", masks, colours).clip(0, 255).astype(np.uint8))


KINDS = {
    "ours": "tab:red",
    "swapped": "darkgrey",
    "one_zeroed": "darkgrey",
}  # ours, and what is broken on purpose; others are blue
AXES = {
    "leakage": "the other's look (DINO with the other concept)",
    "worse": "the worse identity of the two (DINO)",
    "background_change": "background change",
    "contrast": "own minus other",
}


def scores_figure(methods: dict[str, dict], titles: dict[str, str], path: Path) -> None:
    """The worse identity against what of the other's look leaks, and own minus other against background change; ``titles`` by method."""
    figure, axes = plt.subplots(1, 2, figsize=(15, 6.4), layout="constrained")
    figure.suptitle("up and left is better; bars: 95% intervals over pairs; grey: broken on purpose")
    pairs = (("leakage", "worse"), ("background_change", "contrast"))
    named = [(axis, _points(axis, methods, titles, *columns)) for axis, columns in zip(axes, pairs, strict=True)]
    for axis, points in named:
        name_points(axis, points, 9.5)
    save(figure, path)


def _points(axis: Axes, methods: dict[str, dict], titles: dict[str, str], x: str, y: str) -> list[Named]:
    named: list[Named] = []
    for name, found in methods.items():
        if found[x]["mean"] is None or found[y]["mean"] is None or name == "rendered":
            continue
        at, colour = (found[x]["mean"], found[y]["mean"]), KINDS.get(name, "tab:blue")
        axis.errorbar(*at, xerr=_spread(found[x]), yerr=_spread(found[y]), color=colour, alpha=0.25, linewidth=1)
        axis.plot(*at, "o", color=colour)
        named.append((titles[name].replace("*", ""), at, colour))
    axis.set(xlabel=AXES[x], ylabel=AXES[y])
    axis.grid(alpha=0.3)
    return sorted(named, key=lambda one: one[2] != "tab:red")  # ours gets its place first


def _spread(found: dict) -> list | None:
    if found["low"] is None:
        return None
    return [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
