"""One PNG sheet per concept: references; every method from the same noise for one prompt of each group; LAG's masks."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import read_concepts, reference_photos
from persres.images import load_photo, square, unzip_images
from persres.units.context import Context
from persres.units.outputs import read_index
from persres.units.specs import ImageSpec, SampleSpec

GAP = 8
CELL_AT_LEAST = 160  # pixels: tiny pictures are enlarged with hard edges, so that they can be judged


def write_sheets(
    context: Context,
    out: Path,
    every_prompt: bool = False,
    methods: tuple[str, ...] = (),
    concepts: tuple[str, ...] = (),
) -> None:
    """Write ``<concept>.png`` for every concept: one prompt of each group, or every prompt. ``methods``, in their order, and
    ``concepts`` choose some."""
    by_concept: dict[str, list[SampleSpec]] = {}
    archives = [
        archive.spec for archive in read_index(context).archives if not methods or archive.spec.config in methods
    ]
    for spec in sorted(archives, key=lambda spec: methods.index(spec.config)) if methods else archives:
        by_concept.setdefault(spec.concept, []).append(spec)
    for concept, folder in read_concepts(context.data / "concepts"):
        if not concepts or concept.name in concepts:
            _sheet(context, folder, by_concept[concept.name], every_prompt).save(out / f"{concept.name}.png")


def _chosen(spec: SampleSpec, every_prompt: bool) -> list[ImageSpec]:
    """The first picture of the first prompt of each group, or of every prompt."""
    rows = {prompt.number: prompt.number if every_prompt else prompt.group for prompt in spec.prompts}
    first: dict[int | str, ImageSpec] = {}
    for item in spec.image_specs:
        first.setdefault(rows[item.number], item)
    return list(first.values())


def _cell_size(context: Context) -> int:
    resolution = context.profile.base.resolution * context.profile.tables.sheet_scale
    return resolution * max(1, -(-CELL_AT_LEAST // resolution)) if resolution < CELL_AT_LEAST else resolution


def _sheet(context: Context, folder: Path, specs: list[SampleSpec], every_prompt: bool) -> Image.Image:
    cell = _cell_size(context)
    columns, rows = _columns(context, specs), _chosen(specs[0], every_prompt)
    references = [square(load_photo(p), context.profile.base.resolution) for p in reference_photos(folder)][
        : max(5, len(columns))
    ]
    width = max(len(references), len(columns)) * (cell + GAP) + GAP
    height = (len(rows) + 1) * (cell + 2 * GAP + 22) + 40
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    pen.text((GAP, GAP), f"{specs[0].concept}: references ({specs[0].macro_class})", fill="black", font=font)
    for i, photo in enumerate(references):
        sheet.paste(photo.resize((cell, cell), Image.NEAREST), (GAP + i * (cell + GAP), 30))
    top = 30 + cell + GAP
    for i, (title, _) in enumerate(columns):
        pen.text((GAP + i * (cell + GAP), top), title, fill="black", font=font)
    top += 20
    for item in rows:
        pen.text((GAP, top), f"“{item.plain}”", fill="black", font=font)
        for i, (_, pictures) in enumerate(columns):
            picture = pictures.get(item.name)
            if picture is not None:
                sheet.paste(picture.resize((cell, cell), Image.NEAREST), (GAP + i * (cell + GAP), top + 20))
        top += cell + GAP + 22
    return sheet.crop((0, 0, width, min(height, top + GAP)))


def _columns(context: Context, specs: list[SampleSpec]) -> list[tuple[str, dict[str, Image.Image]]]:
    """(title, pictures by item name) of every method, and of the masks after a LAG method."""
    columns = []
    for spec in specs:
        archive = unzip_images(context.data / "samples" / spec.config / f"{spec.concept}.zip")
        columns.append(
            (spec.config, {n.removesuffix(".png"): p for n, p in archive.items() if not n.startswith("masks/")})
        )
        masks = {n.removeprefix("masks/").removesuffix(".png"): p for n, p in archive.items() if n.startswith("masks/")}
        if masks:
            columns.append((f"{spec.config} masks", masks))
    return columns
