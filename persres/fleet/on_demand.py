"""Personalizes one concept on demand: photos come from a store; the residual, its images and README go back into one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from persres.datasets.layout import check_name
from persres.errors import PersresError
from persres.fleet.store import open_store
from persres.personalization import personalize


@dataclass(frozen=True)
class Request:
    """The concept to personalize; ``photos`` and ``to`` are folders or ``s3://bucket/prefix``."""

    photos: str
    to: str
    name: str
    macro_class: str | None = None
    prompts: tuple[str, ...] = ()
    profile: str = "paper"


def personalize_from_store(request: Request, work: Path) -> list[str]:
    """Train on the photos and upload the results; returns their keys. A killed run resumes if its work folder still exists.

    Raises PersresError if there is no photo or the name is no folder name, or as :func:`persres.personalization.personalize` does.
    """
    check_name(request.name)  # first: it names a folder that is emptied below
    source, target, folder = open_store(request.photos), open_store(request.to), work / "photos" / request.name
    shutil.rmtree(folder, ignore_errors=True)
    for key in source.keys(""):
        if "/" not in key:
            source.download(key, folder / key)
    if not folder.is_dir():
        raise PersresError(f"{request.photos} has no files; upload 3 to 15 photos of one object")
    out = work / "personal" / request.name
    options = {"macro_class": request.macro_class, "prompts": request.prompts, "profile": request.profile}
    personalize(folder, name=request.name, out=out, **options)
    files = sorted(path for path in out.iterdir() if path.is_file())
    for path in files:
        target.upload(path, f"{request.name}/{path.name}")
    return [f"{request.name}/{path.name}" for path in files]
