"""CustomConcept101 (Kumari et al. 2023), the paper's benchmark: 101 concepts in 16 categories, 3-15 photos and 20 prompts each.

The lists are the folder ``customconcept101/`` of github.com/adobe-research/custom-diffusion, the photos its published archive.
Both are downloaded unless ``fetch.folder`` already holds them:

    <folder>/dataset.json, prompts/*.txt      (or both in <folder>/customconcept101/)
    <folder>/benchmark_dataset/<concept>/*.jpg
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

from pydantic import BaseModel
from tqdm import tqdm

from persres.config.schema import Fetch
from persres.datasets.download import from_hub, from_web
from persres.datasets.layout import Concept, check_concept, check_name
from persres.datasets.photos import copy_concept, find_photos
from persres.datasets.prompt_groups import CUSTOMCONCEPT101, grouped
from persres.datasets.unpack import unpack
from persres.errors import PersresError
from persres.untrusted.documents import read_json, read_text
from persres.untrusted.names import relative_path

log = logging.getLogger(__name__)
COUNT, PROMPTS = 101, 20  # concepts, prompts of each
FOLDER = Path(".work/datasets/customconcept101")
PHOTOS = "nupurkmr9/custom-diffusion", "benchmark_dataset.zip"  # a dataset on the Hugging Face hub, and its file
LISTS_URL = "https://github.com/adobe-research/custom-diffusion/archive/refs/heads/main.zip"
LICENCE = (
    "CustomConcept101. Lists and prompts: Adobe Research License, Copyright 2022 Adobe Inc. and its licensors, non-commercial "
    "research only (github.com/adobe-research/custom-diffusion). Photos: Unsplash License where from Unsplash, CC BY-SA 4.0 where "
    "its authors' own, the flowers from Wikimedia, Flickr and Pixabay (cs.cmu.edu/~custom-diffusion/assets/urls.txt); some are "
    "photos of DreamBench (github.com/google/dreambooth)"
)


class Entry(BaseModel):
    """A concept of ``dataset.json``; its other fields belong to the authors' code."""

    instance_data_dir: str
    class_prompt: str
    prompt_filename: str


def fetch(settings: Fetch, root: Path) -> int:
    """Write the selected concepts below ``root``; returns their number.

    The concept id is the photo folder's name, the category its part before ``_``, the macro class the list's ``class_prompt``.
    Raises PersresError that names a missing concept or prompt file, a damaged photo, or the URL that cannot be fetched.
    """
    folder = Path(settings.folder or FOLDER)
    lists, photos = _lists(folder, settings), _photos(folder, settings)
    entries = _entries(lists / "dataset.json")
    _check_choice(settings, entries, photos)
    log.info("fetch: %s", LICENCE)
    for name in tqdm(settings.concepts or sorted(entries), desc="fetch", mininterval=2, leave=False, disable=None):
        entry = entries[name]
        prompts = read_prompts(
            lists / relative_path(entry.prompt_filename, f"{lists / 'dataset.json'}: prompt_filename")
        )
        concept = Concept(name, name.split("_")[0], entry.class_prompt, prompts, LICENCE)
        copy_concept(find_photos(photos / name), check_concept(concept, lists / "dataset.json"), root)
    return len(settings.concepts or entries)


def size(settings: Fetch) -> tuple[int, int]:
    """Number of concepts and of all their prompts."""
    concepts = len(settings.concepts) or COUNT
    return concepts, concepts * PROMPTS


def _manual(folder: Path) -> str:
    """How to get the files without a network."""
    return (
        f"connect to the network, or put the files into {folder}: dataset.json and prompts/ of the repository's folder "
        f"customconcept101 ({LISTS_URL}), and benchmark_dataset/<concept>/*.jpg, unpacked from {PHOTOS[1]} of the hub's dataset {PHOTOS[0]}"
    )


def _lists(folder: Path, settings: Fetch) -> Path:
    for lists in (folder, folder / "customconcept101"):
        if (lists / "dataset.json").exists():
            return lists
    name, prefix = "custom-diffusion-main.zip", "custom-diffusion-main/"
    archive = from_web(LISTS_URL, folder / name, settings.sha256.get(name), _manual(folder))
    unpack(archive, folder / "customconcept101", f"{prefix}customconcept101/", (f"{prefix}LICENSE.md",))
    return folder / "customconcept101"


def _photos(folder: Path, settings: Fetch) -> Path:
    photos, (dataset, name) = folder / "benchmark_dataset", PHOTOS
    if not photos.is_dir():
        archive = from_hub(dataset, name, folder / name, settings.sha256.get(name), _manual(folder))
        unpack(archive, photos, "benchmark_dataset/")
    return photos


def _entries(path: Path) -> dict[str, Entry]:
    """The list's entries by concept id. Raises PersresError for another file."""
    listed = read_json(path, list[Entry], "it is not CustomConcept101's dataset.json: restore it")
    entries = {check_name(PurePosixPath(entry.instance_data_dir).name): entry for entry in listed}
    if len(entries) != len(listed):
        raise PersresError(f"{path} lists a concept twice; it is not CustomConcept101's dataset.json: restore it")
    return entries


def _check_choice(settings: Fetch, entries: dict[str, Entry], photos: Path) -> None:
    unknown = [name for name in settings.concepts if name not in entries]
    if unknown:
        raise PersresError(
            f"fetch.concepts: CustomConcept101 has no {', '.join(unknown)}; it has {', '.join(sorted(entries))}"
        )
    missing = [name for name in settings.concepts or sorted(entries) if not (photos / name).is_dir()]
    if missing:
        raise PersresError(
            f"{photos} has no folder for {len(missing)} of the concepts ({', '.join(missing)}); add them, or select others in fetch.concepts"
        )


def read_prompts(path: Path) -> tuple[tuple[str, str], ...]:
    """The 20 prompts of a file as (group, text with ``{}``). Raises PersresError for a missing or other file."""
    text = read_text(path, fix="copy the repository's folder customconcept101 whole")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.stem not in CUSTOMCONCEPT101 or len(lines) != PROMPTS:
        raise PersresError(
            f"{path} has {len(lines)} prompts and is not one of the published lists of {PROMPTS}; restore it"
        )
    return grouped(lines, CUSTOMCONCEPT101[path.stem])
