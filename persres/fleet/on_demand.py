"""One concept on demand: photos from a store, the residual, its pictures and README back into one."""

from __future__ import annotations

import shutil
from pathlib import Path

from persres.datasets.layout import check_name
from persres.errors import PersresError
from persres.fleet.store import open_store
from persres.personalization import personalize


def personalize_from(
    photos: str, to: str, work: Path, name: str, *, macro_class: str | None, prompts: tuple[str, ...], profile: str
) -> list[str]:
    """Learn the photos below ``photos`` (a folder or s3://…) and leave what was made below ``to``; returns its keys. A run that was killed
    goes on where its work folder is still there.

    Raises PersresError where there is no photo or the name is none for a folder, or as :func:`persres.personalization.personalize` does.
    """
    check_name(name)  # first: what is emptied below is named by it
    source, target, folder = open_store(photos), open_store(to), work / "photos" / name
    shutil.rmtree(folder, ignore_errors=True)
    for key in source.keys(""):
        if "/" not in key:
            source.download(key, folder / key)
    if not folder.is_dir():
        raise PersresError(f"{photos} holds no file; put 3 to 15 photos of one thing there")
    out = work / "personal" / name
    personalize(folder, macro_class=macro_class, name=name, prompts=prompts, out=out, profile=profile)
    made = sorted(path for path in out.iterdir() if path.is_file())
    for path in made:
        target.upload(path, f"{name}/{path.name}")
    return [f"{name}/{path.name}" for path in made]
