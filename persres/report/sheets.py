"""One PNG sheet per concept: references, and every config's images of the same prompts and noise, with LAG's masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import read_concepts, reference_photos
from persres.images import load_photo, square, unzip_images
from persres.units.context import Context
from persres.units.outputs import read_index
from persres.units.specs import ImageSpec, SampleSpec

GAP, LINE = 8, 20  # pixels between cells; of a line of text
MIN_CELL = 160  # pixels; smaller images are enlarged with hard edges
Columns = list[tuple[str, dict[str, Image.Image]]]  # title, images by name


def write_sheets(
    context: Context,
    out: Path,
    every_prompt: bool = False,
    configs: tuple[str, ...] = (),
    concepts: tuple[str, ...] = (),
) -> None:
    """Write ``<concept>.png``: one prompt of each group, or every prompt. ``configs`` (in their order) and ``concepts`` select
    some; empty means all."""
    by_concept: dict[str, list[SampleSpec]] = {}
    specs = [archive.spec for archive in read_index(context).archives]
    for spec in (
        sorted((s for s in specs if s.config in configs), key=lambda s: configs.index(s.config)) if configs else specs
    ):
        by_concept.setdefault(spec.concept, []).append(spec)
    for concept, folder in read_concepts(context.data / "concepts"):
        if not concepts or concept.name in concepts:
            _sheet(context, folder, by_concept[concept.name], every_prompt).save(out / f"{concept.name}.png")


def rows_of(spec: SampleSpec, every_prompt: bool) -> list[ImageSpec]:
    """The first image of the first prompt of each group, or of every prompt."""
    keys = {prompt.number: prompt.number if every_prompt else prompt.group for prompt in spec.prompts}
    first: dict[int | str, ImageSpec] = {}
    for image in spec.image_specs:
        first.setdefault(keys[image.number], image)
    return list(first.values())


def _sheet(context: Context, folder: Path, specs: list[SampleSpec], every_prompt: bool) -> Image.Image:
    resolution = context.profile.base.resolution
    columns = columns_of(context, specs)
    photos = [square(load_photo(path), resolution) for path in reference_photos(folder)][: max(5, len(columns))]
    sheet = Sheet(
        f"{specs[0].concept}: references ({specs[0].macro_class})", photos, columns, rows_of(specs[0], every_prompt)
    )
    return sheet.drawn(cell_of(context))


def cell_of(context: Context) -> int:
    """The side of a sheet's cell in pixels."""
    side = context.profile.base.resolution * context.profile.tables.sheet_scale
    return side * max(1, -(-MIN_CELL // side))


@dataclass(frozen=True)
class Sheet:
    """A row of ``tiles`` under a title, then a row of images for each prompt, one in each of the columns."""

    title: str
    tiles: list[Image.Image]
    columns: Columns
    rows: list[ImageSpec]

    def drawn(self, cell: int) -> Image.Image:
        """The sheet, with square cells of so many pixels."""
        width = max(len(self.tiles), len(self.columns)) * (cell + GAP) + GAP
        height = 30 + cell + GAP + LINE + len(self.rows) * (cell + GAP + LINE + 2) + GAP
        sheet = Image.new("RGB", (width, height), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)

        def line(column: int, top: int, text: str) -> None:
            pen.text((GAP + column * (cell + GAP), top), text, fill="black", font=font)

        def paste(column: int, top: int, image: Image.Image | None) -> None:
            if image is not None:
                sheet.paste(image.resize((cell, cell), Image.NEAREST), (GAP + column * (cell + GAP), top))

        line(0, GAP, self.title)
        for i, tile in enumerate(self.tiles):
            paste(i, 30, tile)
        top = 30 + cell + GAP
        for i, (title, _) in enumerate(self.columns):
            line(i, top, title)
        top += LINE
        for row in self.rows:
            line(0, top, f"“{row.plain}”")
            for i, (_, images) in enumerate(self.columns):
                paste(i, top + LINE, images.get(row.name))
            top += cell + GAP + LINE + 2
        return sheet


def columns_of(context: Context, specs: list[SampleSpec]) -> Columns:
    """A column for the images of every config, and one for the masks of a config with LAG."""
    columns: Columns = []
    for spec in specs:
        path = context.data / "samples" / spec.config / f"{spec.concept}.zip"
        archive = {name.removesuffix(".png"): image for name, image in unzip_images(path).items()}
        masks = {name.removeprefix("masks/"): image for name, image in archive.items() if name.startswith("masks/")}
        columns.append((spec.config, archive))
        columns += [(f"{spec.config} masks", masks)] if masks else []
    return columns
