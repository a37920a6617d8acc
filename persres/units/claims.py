"""An output folder belongs to one set of inputs: whose it is is recorded before anything is written, and one run at a time works there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from persres.errors import PersresError
from persres.units.files import digest_file, remove_partials, write_atomic
from persres.units.locks import stage_lock
from persres.untrusted.documents import read_json
from persres.untrusted.text import printable

log = logging.getLogger(__name__)
RUN = ".run"  # below the output folder: the record, the locks and the stages' files
RECORD = "inputs.json"
POLL_S = 0.2


class Inputs(BaseModel):
    """What a run reads: the concept's name, the photos' folder, the digests of the photos and of all settings."""

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    photos: tuple[str, ...]
    settings: str

    @classmethod
    def of(cls, name: str, photos: list[Path], settings: str) -> Inputs:
        """The inputs of photos of one folder."""
        source = os.path.realpath(photos[0].parent)
        return cls(
            name=name,
            source=printable(source, 5000),
            photos=tuple(sorted(digest_file(path) for path in photos)),
            settings=settings,
        )

    def continues(self, earlier: Inputs) -> bool:
        """Whether this run may replace the results of an earlier one: the same name, and the same photos or the same folder of photos
        with some of them."""
        if self.name != earlier.name:
            return False
        same_folder = self.source == earlier.source and set(self.photos) & set(earlier.photos)
        return bool(same_folder) or self.photos == earlier.photos


@contextmanager
def claimed(folder: Path, inputs: Inputs) -> Iterator[None]:
    """Hold an output folder for one run of these inputs, which are recorded in it. The same run in another process is waited for.

    Raises PersresError where the folder has results of other inputs, or other inputs are being worked on there, or it can't be written.
    """
    check_claim(folder, inputs)
    lock, waits = FileLock(folder / RUN / "run.lock"), False
    try:
        while not _claim(folder, inputs, lock):
            if not waits:
                log.info("another process works on the same photos in %s; waiting for it to end", folder)
            waits = True
            time.sleep(POLL_S)
        for place in (folder, folder / RUN):
            remove_partials(place, ".*.partial")
        yield
    finally:
        lock.release()


def check_claim(folder: Path, inputs: Inputs) -> None:
    """Raises PersresError where an output folder has results of other inputs."""
    recorded = recorded_inputs(folder)
    if recorded is not None and not inputs.continues(recorded):
        raise PersresError(
            f"{folder} has the results of {recorded.name} from other photos ({recorded.source}); give another folder with --out, another"
            " name with --name, or remove it"
        )


def _claim(folder: Path, inputs: Inputs, lock: FileLock) -> bool:
    """Lock the folder and record its inputs; returns False while another process works there on the same ones."""
    with stage_lock(folder / RUN, "claim"):
        check_claim(folder, inputs)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if recorded_inputs(folder) == inputs:
                return False
            raise PersresError(
                f"another process works in {folder} with other photos or settings; wait for its end, or give another folder with --out"
            ) from None
        write_atomic(folder / RUN / RECORD, inputs.model_dump_json(indent=1).encode())
        return True


def recorded_inputs(folder: Path) -> Inputs | None:
    """The inputs whose results an output folder holds, or None. Raises PersresError for a broken record."""
    path = folder / RUN / RECORD
    if path.is_file():
        return read_json(path, Inputs, f"remove {folder / RUN}, or give another folder with --out")
    return _staged_inputs(folder / RUN / "photos")


def _staged_inputs(staged: Path) -> Inputs | None:
    """The inputs that version 0.1 left: links to the photos in a folder with the concept's name."""
    concepts = [path for path in staged.iterdir() if path.is_dir()] if staged.is_dir() else []
    links = [path for concept in concepts for path in sorted(concept.iterdir()) if path.is_symlink()]
    if len(concepts) != 1 or not links:
        return None
    source = os.path.dirname(os.path.realpath(links[0]))
    photos = tuple(sorted(digest_file(path) for path in links if path.is_file()))
    return Inputs(name=concepts[0].name, source=printable(source, 5000), photos=photos, settings="")
