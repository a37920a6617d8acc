"""The sheet of ``persres personalize``: the photos as training saw them, the loss, every prompt's images with the masks laid over them, and
previews of the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import read_concepts, reference_photos
from persres.images import load_photo
from persres.report.sheets import Columns, Sheet, cell_of, columns_of, rows_of
from persres.training.framing import GREY, framed
from persres.units.context import Context
from persres.units.outputs import read_index

DIMMED = 0.3  # brightness of what a crop or a mask leaves out
SMOOTHED = 10  # steps in the running mean of the curve
MASKS = " masks"


@dataclass(frozen=True)
class TrainingRecord:
    """What training left: the loss of every step, and previews by their number of steps; ``crop``: how photos became images, and
    ``factor``: the pixels of a latent pixel."""

    losses: list[float]
    previews: dict[int, Path]
    crop: str = "center"
    factor: int = 8


def personal_sheet(context: Context, record: TrainingRecord) -> Image.Image:
    """The sheet of a run's only concept."""
    ((concept, folder),) = read_concepts(context.data / "concepts")
    specs = [archive.spec for archive in read_index(context).archives]
    rows, cell = rows_of(specs[0], every_prompt=True), cell_of(context)
    columns = _with_masks(columns_of(context, specs))
    for steps, path in sorted(record.previews.items()):
        with Image.open(path) as preview:
            columns.append((f"after {steps} steps", {rows[0].name: preview.convert("RGB")}))
    photos = [_tile(path, context.profile.base.resolution, record, cell) for path in reference_photos(folder)]
    tiles = [*photos[: max(5, len(columns) - 1)], loss_curve(record.losses, cell)]
    title = f"{concept.name}: photos ({specs[0].macro_class}; crop {record.crop}), then the loss of {len(record.losses)} steps"
    return Sheet(title, tiles, columns, rows).drawn(cell)


def _with_masks(columns: Columns) -> Columns:
    """The columns, with masks laid over the images of the column before them."""
    changed: Columns = []
    for title, images in columns:
        if title.endswith(MASKS) and changed:
            images = {name: laid_over(changed[-1][1][name], mask) for name, mask in images.items()}
            title = f"{title.removesuffix(MASKS)}: where it acts"
        changed.append((title, images))
    return changed


def laid_over(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image, dimmed outside of its mask, which may be smaller."""
    alpha = mask.convert("L").resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, image.point(lambda level: round(level * DIMMED)), alpha)


def _tile(path: Path, resolution: int, record: TrainingRecord, cell: int) -> Image.Image:
    """A whole photo in a square cell, dimmed where the crop leaves it out."""
    photo = load_photo(path)
    _, frame = framed(photo, resolution, record.crop, record.factor)
    left, top, right, bottom = frame.used
    scale = cell / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    small = photo.resize((width, height), Image.Resampling.BICUBIC)
    used = Image.new("L", small.size, round(255 * DIMMED))
    used.paste(255, tuple(round(edge * scale) for edge in (left, top, right, bottom)))
    tile, black = Image.new("RGB", (cell, cell), GREY), Image.new("RGB", small.size)
    tile.paste(Image.composite(small, black, used), ((cell - width) // 2, (cell - height) // 2))
    return tile


def loss_curve(losses: list[float], side: int) -> Image.Image:
    """The loss of every step in grey, its running mean in blue, in a square; the axes name the first and the last values."""
    image = Image.new("RGB", (side, side), "white")
    pen, font, edge = ImageDraw.Draw(image), ImageFont.load_default(11), 16
    pen.rectangle((0, 0, side - 1, side - 1), outline="grey")
    if not losses:
        pen.text((edge, edge), "no loss", fill="black", font=font)
        return image
    means = [sum(part) / len(part) for i in range(len(losses)) for part in [losses[max(0, i + 1 - SMOOTHED) : i + 1]]]
    low, high = min(losses), max(losses)
    span, last, height = (high - low) or 1.0, max(1, len(losses) - 1), side - 2 * edge

    def points(values: list[float]) -> list[tuple[float, float]]:
        return [(2 + (side - 5) * i / last, edge + height * (high - v) / span) for i, v in enumerate(values)]

    for values, colour, width in ((losses, "lightgrey", 1), (means, "steelblue", 2)):
        line = points(values)
        pen.line(line if len(line) > 1 else line * 2, fill=colour, width=width)
    pen.text((3, 2), f"loss, highest {high:.3g}", fill="black", font=font)
    pen.text((3, side - edge + 1), f"lowest {low:.3g}, last {means[-1]:.3g}", fill="black", font=font)
    return image
