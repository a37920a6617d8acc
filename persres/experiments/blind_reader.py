"""Sheets for a blind reader: somebody who sees references and numbered images, nothing else, and names the concept in each image.

``write_sheets`` writes ``references.png`` (every concept under a letter), ``images.png`` (numbered, all configs mixed) and ``key.json``. The reader
leaves ``answers.json``: number -> letter, or "none" for an object that is none of the concepts. ``score`` compares the two by config.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from persres.datasets.layout import read_concepts, reference_photos
from persres.errors import PersresError
from persres.images import load_photo, unzip_images
from persres.prompts import PROMPT_GROUPS
from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.outputs import read_index
from persres.units.specs import SampleSpec

CELL, GAP, LINE = 160, 10, 20  # pixels: an image, between two, a line of text
COLUMNS = 8
PER_CONCEPT = 2  # images of each config
NONE = "none"


@dataclass(frozen=True)
class NumberedImage:
    """One image on the sheet. ``letter`` is the right answer."""

    number: int
    config: str
    concept: str
    letter: str
    prompt: str
    image: str


def write_sheets(sources: Sequence[tuple[Context, Sequence[str]]], out: Path, seed: int = 0) -> list[NumberedImage]:
    """Write the sheets and the key of the configs of one or more runs, which have the same concepts; return the items.

    Every config shows two images of each concept, over all prompt groups evenly. Raises PersresError for a config that was not sampled.
    """
    concepts = read_concepts(sources[0][0].data / "concepts")
    letters = {concept.name: chr(ord("A") + i) for i, (concept, _) in enumerate(concepts)}
    shown = [entry for context, configs in sources for config in configs for entry in _picked(context, config)]
    order = np.random.default_rng(seed).permutation(len(shown))
    items, images = [], []
    for number, index in enumerate(order, 1):
        (spec, name, prompt), image = shown[index]
        items.append(NumberedImage(number, spec.config, spec.concept, letters[spec.concept], prompt, name))
        images.append(image)
    out.mkdir(parents=True, exist_ok=True)
    photos = [([load_photo(p) for p in reference_photos(folder)][:5], letters[c.name]) for c, folder in concepts]
    _references(photos).save(out / "references.png", optimize=True)
    _numbered(images).save(out / "images.png", optimize=True)
    write_atomic(out / "key.json", json.dumps([asdict(item) for item in items], indent=1).encode())
    return items


def _picked(context: Context, config: str) -> list[tuple[tuple[SampleSpec, str, str], Image.Image]]:
    """Two images of every concept by a config; the groups take turns."""
    specs = [archive.spec for archive in read_index(context).archives if archive.spec.config == config]
    if not specs:
        raise PersresError(f"no images of config {config!r} in {context.data / 'samples'}; sample it first")
    picked = []
    for position, spec in enumerate(specs):
        images = unzip_images(context.data / "samples" / config / f"{spec.concept}.zip")
        for turn in range(PER_CONCEPT):
            group = PROMPT_GROUPS[(PER_CONCEPT * position + turn) % len(PROMPT_GROUPS)]
            prompts = [prompt for prompt in spec.prompts if prompt.group == group]
            prompt = prompts[(position + turn) % len(prompts)]
            name = f"{prompt.number:02d}_000"
            picked.append(((spec, name, prompt.text), images[f"{name}.png"]))
    return picked


def _references(rows: list[tuple[list[Image.Image], str]]) -> Image.Image:
    """Two concepts beside each other, each with its letter and its photos."""
    width = LINE + 5 * (CELL + GAP) + 3 * GAP
    sheet = Image.new("RGB", (2 * width, -(-len(rows) // 2) * (CELL + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    for index, (photos, letter) in enumerate(rows):
        left, top = (index % 2) * width, GAP + (index // 2) * (CELL + GAP)
        pen.text((left + GAP, top + CELL // 2 - 12), letter, fill="black", font=font)
        for column, photo in enumerate(photos):
            place = (left + LINE + 2 * GAP + column * (CELL + GAP), top)
            sheet.paste(photo.resize((CELL, CELL), Image.NEAREST), place)
    return sheet


def _numbered(images: list[Image.Image]) -> Image.Image:
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + LINE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for index, image in enumerate(images):
        left, top = GAP + (index % COLUMNS) * (CELL + GAP), GAP + (index // COLUMNS) * (CELL + LINE + GAP)
        pen.text((left, top), str(index + 1), fill="black", font=font)
        sheet.paste(image.resize((CELL, CELL), Image.NEAREST), (left, top + LINE))
    return sheet


def score(folder: Path) -> dict[str, dict[str, int]]:
    """By config: images, how many the reader ``named`` rightly, ``mistaken`` for another concept, and called ``none``.

    Raises PersresError for answers that leave out a number or give one that the key lacks.
    """
    key = [NumberedImage(**item) for item in json.loads((folder / "key.json").read_text())]
    answers = {int(number): answer for number, answer in json.loads((folder / "answers.json").read_text()).items()}
    numbers = {item.number for item in key}
    if set(answers) != numbers:
        wrong = sorted(set(answers) ^ numbers)
        raise PersresError(
            f"{folder / 'answers.json'}: one answer per image is needed; see {', '.join(map(str, wrong))}"
        )
    result: dict[str, dict[str, int]] = {}
    for item in key:
        row = result.setdefault(item.config, {"images": 0, "named": 0, "mistaken": 0, NONE: 0})
        row["images"] += 1
        answer = answers[item.number].strip()
        row["named" if answer == item.letter else NONE if answer == NONE else "mistaken"] += 1
    return result
