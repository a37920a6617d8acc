"""Personalizes one concept on demand: photos come from a store; the residual, its images and README go back into one.

A request works in a folder of its own, named by its hash, and what another request left there is never uploaded. The folder goes when
the results are in the store, so that nobody's photos stay on a worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from persres.errors import PersresError
from persres.fleet.store import Store, open_store
from persres.personal.results import IMAGES, PREVIEWS
from persres.personalization import personalize
from persres.units.files import digest_folder, publishing
from persres.units.locks import stage_lock
from persres.untrusted.names import identifier, object_key
from persres.untrusted.text import printable, redacted

MOST_KEYS = 10_000  # listed below ``photos``: more is a bucket, and no folder of photos
FOLDERS = (IMAGES, PREVIEWS)
RESULTS = ("{}.safetensors", "{}.png", "README.md")  # what personalize makes, by the concept's name


@dataclass(frozen=True)
class Request:
    """The concept to personalize; ``photos`` and ``to`` are folders or ``s3://bucket/prefix``."""

    photos: str
    to: str
    name: str
    macro_class: str | None = None
    prompts: tuple[str, ...] = ()
    profile: str = "paper"

    @property
    def hash(self) -> str:
        """The name of the request's folder on a worker."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def personalize_from_store(request: Request, work: Path) -> list[str]:
    """Train on the photos and upload the results; returns their keys. A killed run resumes if its work folder still exists.

    Raises PersresError if there is no photo or the name is no concept name, or as :func:`persres.personalization.personalize` does.
    """
    name = identifier(request.name, "concept name")
    source, target, place = open_store(request.photos), open_store(request.to), work / "on_demand"
    with stage_lock(place, request.hash):
        folder = place / request.hash
        with publishing(folder / "photos") as fresh:
            _download(source, fresh, printable(redacted(request.photos)))
        out = folder / digest_folder(folder / "photos")[:16]  # other photos at the same address are another run
        options = {"macro_class": request.macro_class, "prompts": request.prompts, "profile": request.profile}
        try:
            personalize(folder / "photos", name=name, out=out, **options)
        except PersresError:
            _upload(out, target, name)  # a residual may be finished
            raise
        keys = _upload(out, target, name)
        shutil.rmtree(folder, ignore_errors=True)
    if not keys:
        raise PersresError(f"{name}: personalize left no result; run it again")
    return keys


def _download(source: Store, folder: Path, address: str) -> None:
    """Download the files of a folder of a store, but not of the folders in it. Raises PersresError if there is none."""
    keys = list(islice(source.keys(""), MOST_KEYS + 1))
    if len(keys) > MOST_KEYS:
        raise PersresError(f"{address} has more than {MOST_KEYS} files; pass the folder with the 3 to 15 photos")
    photos = [object_key(key, "the photo's name") for key in keys if "/" not in key and not key.startswith(".")]
    if not photos:
        raise PersresError(f"{address} has no files; upload 3 to 15 photos of one object")
    for number, key in enumerate(photos):
        partial = folder / f".{number}"  # the name itself may be as long as a name can be
        if not source.download(key, partial):
            raise PersresError(f"{address}: {printable(key)} is gone; upload it again")
        os.rename(partial, folder / key)


def _upload(out: Path, target: Store, name: str) -> list[str]:
    """Upload the results that were made, and nothing else of their folder; returns their keys."""
    made = [path for pattern in RESULTS if (path := out / pattern.format(name)).is_file()]
    made += [path for folder in FOLDERS for path in sorted((out / folder).glob("*.png"))]
    keys = {f"{name}/{path.relative_to(out).as_posix()}": path for path in made}
    for key, path in keys.items():
        target.upload(path, key)
    return sorted(keys)
