"""What several concepts look like by every method, on one sheet; and what each method scores."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on an agent
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import reference_photos
from persres.evidence.beyond.several_cases import Case
from persres.evidence.beyond.several_draw import Drawn
from persres.evidence.figures import save
from persres.images import load_photo, square
from persres.runs.context import Context

CELL, GAP, HEAD = 112, 4, 18  # pixels
ROWS = 12
SHOWN = ("base", "added", "merged", "halves", "halves_back", "ours")
COLOURS = ((230, 60, 60), (60, 150, 240), (80, 200, 90), (240, 200, 60))


def sheet(context: Context, cases: list[Case], drawn: dict[str, Drawn], path: Path) -> None:
    """The first picture of up to twelve pairs, not chosen: references, every method from the same noise, our masks (red the prompt's first
    concept, blue its second)."""
    first = {case.group: i for i, case in reversed(list(enumerate(cases)))}
    chosen = sorted(first.values())[:ROWS]
    titles = ["first", "second", *SHOWN, "our masks"]
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


def _row(context: Context, case: Case, i: int, drawn: dict[str, Drawn]) -> list[Image.Image]:
    concepts, side = context.data / "concepts", context.profile.base.resolution
    references = [square(load_photo(reference_photos(concepts / name)[0]), side) for name in case.names[:2]]
    pictures = [Image.fromarray(drawn[method].images[i]) for method in SHOWN]
    return [*references, *pictures, coloured(drawn["ours"].masks[i])]


def coloured(masks: np.ndarray) -> Image.Image:
    """Masks [K, s, s] in [0, 1], a colour each."""
    colours = np.array(COLOURS[: len(masks)], dtype=float)
    return Image.fromarray(np.einsum("khw,kc->hwc", masks, colours).clip(0, 255).astype(np.uint8))


def scores(methods: dict[str, dict], path: Path) -> None:
    """The worse identity against what of the other's look leaks, and own minus other against background change."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for axis, (x, y) in zip(axes, (("leakage", "worse"), ("background_change", "contrast")), strict=True):
        for name, found in methods.items():
            if found[x]["mean"] is None or found[y]["mean"] is None or name == "rendered":
                continue
            axis.errorbar(
                found[x]["mean"], found[y]["mean"], xerr=_spread(found[x]), yerr=_spread(found[y]), fmt="o", capsize=2
            )
            axis.annotate(
                name, (found[x]["mean"], found[y]["mean"]), xytext=(5, 5), textcoords="offset points", fontsize=8
            )
        axis.set(xlabel=x.replace("_", " "), ylabel=y)
        axis.grid(alpha=0.3)
    figure.suptitle("up and left is better")
    save(figure, path)


def _spread(found: dict) -> list | None:
    if found["low"] is None:
        return None
    return [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
