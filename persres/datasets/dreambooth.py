"""DreamBooth's dataset (Ruiz et al. 2023, "DreamBench"): 30 subjects, 4-6 photos and 25 prompts each.

Downloaded from github.com/google/dreambooth unless ``fetch.folder`` already holds it:

    <folder>/prompts_and_classes.txt, references_and_licenses.txt, <subject>/*.jpg      (or all of it in <folder>/dataset/)
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from persres.config.schema import Fetch
from persres.datasets.download import from_web
from persres.datasets.layout import Concept, check_concept
from persres.datasets.photos import copy_concept, find_photos
from persres.datasets.prompt_groups import DREAMBOOTH, grouped
from persres.datasets.unpack import unpack
from persres.errors import PersresError
from persres.untrusted.documents import read_text

log = logging.getLogger(__name__)
COUNT, PROMPTS = 30, 25  # subjects, prompts of each
FOLDER = Path(".work/datasets/dreambooth")
URL = "https://github.com/google/dreambooth/archive/refs/heads/main.zip"
LIST, SOURCES = "prompts_and_classes.txt", "references_and_licenses.txt"
LICENCE = "github.com/google/dreambooth, CC BY 4.0; photos from Unsplash under the Unsplash License"
MOST_LIST = 64 << 10  # bytes; the published lists have 4 and 7 KB
LIVE = ("cat", "dog")  # the classes that the list's "live subject" prompts are for
_SUBJECT = re.compile(r"^([a-z0-9_]+),([a-z ]+)$", re.MULTILINE)
_PROMPT = re.compile(r"^'(.*)'\.format", re.MULTILINE)


def fetch(settings: Fetch, root: Path) -> int:
    """Write the selected subjects below ``root``, by default all in the folder; returns their number.

    The category, ``live subject`` or ``object``, decides the prompts; the licence names the sources of the photos. Raises
    PersresError that names a missing or damaged file.
    """
    folder = _files(Path(settings.folder or FOLDER), settings)
    classes, prompts = read_list(folder / LIST)
    log.info("fetch: %s", LICENCE)
    names, credits = _selected(settings, folder, classes), _credits(folder / SOURCES)
    for name in names:
        kind = "live subject" if classes[name] in LIVE else "object"
        licence = f"{LICENCE}. {credits.get(name, '')}".strip()
        concept = Concept(name, kind, classes[name], grouped(prompts[kind], DREAMBOOTH[kind]), licence)
        copy_concept(find_photos(folder / name), check_concept(concept, folder / LIST), root)
    return len(names)


def size(settings: Fetch) -> tuple[int, int]:
    """Number of concepts and of all their prompts."""
    concepts = len(settings.concepts) or COUNT
    return concepts, concepts * PROMPTS


def _files(folder: Path, settings: Fetch) -> Path:
    for files in (folder, folder / "dataset"):
        if (files / LIST).exists():
            return files
    name, prefix = "dreambooth-main.zip", "dreambooth-main/"
    manual = f"connect to the network, or put {LIST}, {SOURCES} and <subject>/*.jpg into {folder}"
    archive = from_web(URL, folder / name, settings.sha256.get(name), manual)
    unpack(archive, folder / "dataset", f"{prefix}dataset/", (f"{prefix}LICENSE", f"{prefix}LICENSE.md"))
    return folder / "dataset"


def read_list(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Class by subject, and prompts with ``{}`` by category. Raises PersresError for another file."""
    text = read_text(path, MOST_LIST, "restore it")
    head, _, rest = text.partition("Object Prompts")
    parts = dict(zip(DREAMBOOTH, rest.partition("Live Subject Prompts")[::2], strict=True))
    classes = {name: word for name, word in _SUBJECT.findall(head) if name != "subject_name"}
    prompts = {
        kind: [p.replace("{0} {1}", "{}") for p in _PROMPT.findall(part) if "{0} {1}" in p]
        for kind, part in parts.items()
    }
    if not classes or any(len(texts) != PROMPTS for texts in prompts.values()):
        raise PersresError(f"{path} is not DreamBooth's list of classes and prompts; restore it")
    return classes, prompts


def _selected(settings: Fetch, folder: Path, classes: dict[str, str]) -> list[str]:
    unknown = [name for name in settings.concepts if name not in classes]
    if unknown:
        raise PersresError(
            f"fetch.concepts: DreamBooth's dataset has no {', '.join(unknown)}; it has {', '.join(classes)}"
        )
    missing = [name for name in settings.concepts or classes if not (folder / name).is_dir()]
    selected = [name for name in settings.concepts or classes if name not in missing]
    if (missing and settings.concepts) or not selected:
        raise PersresError(
            f"{folder} has no folder of photos for {', '.join(missing)}; add it, or leave it out of fetch.concepts"
        )
    if missing:
        log.info("fetch: %s lacks %d of %d subjects: %s", folder, len(missing), len(classes), ", ".join(missing))
    return selected


def _credits(path: Path) -> dict[str, str]:
    """The text of ``references_and_licenses.txt`` by subject, on one line each."""
    if not path.exists():
        raise PersresError(f"no {path}; copy it from github.com/google/dreambooth, it credits the photos")
    blocks = re.findall(
        r"^([a-z0-9_]+):[ ]*\n?(.*?)(?=\n\s*\n|\Z)", read_text(path, MOST_LIST, "restore it"), re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(text.split()) for name, text in blocks}
