"""``persres repro``: checks a profile, selects it and runs ``dvc repro``; a failure leaves params.yaml, dvc.lock and data/ as they were.

Units that were finished stay in the work folder, so that the next run goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from persres.config.load import read_params
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.units.files import write_atomic
from persres.untrusted.documents import parse_yaml, read_yaml
from persres.versions.tracked import Lock

log = logging.getLogger(__name__)
PARAMS, LOCK = "params.yaml", "dvc.lock"
SAVED = "before_repro"  # folder of the work folder


def reproduce(profile: str, folder: Path = Path(), work: Path = Path(".work")) -> None:
    """Select the profile and run ``dvc repro``. Raises PersresError if a stage fails, with everything as it was."""
    params = folder / PARAMS
    before = None if read_params(params)["profile"] == profile else State.of(folder, folder / work / SAVED)
    try:
        select(params, profile)
        _repro(folder)
    except BaseException:
        if before is not None:
            before.restore(folder)
        raise
    if before is not None:
        shutil.rmtree(before.saved)


def select(params: Path, profile: str) -> None:
    """Select a profile in a params.yaml: changes one line. Raises PersresError for a profile that is none or invalid."""
    load_profile(params, profile)
    name = profile if profile.isidentifier() else json.dumps(profile, ensure_ascii=False)
    text = params.read_text(encoding="utf-8")
    changed, count = re.subn(r"^profile:.*$", lambda _: f"profile: {name}", text, count=1, flags=re.MULTILINE)
    if not count or parse_yaml(changed, dict, params)["profile"] != profile:
        raise PersresError(f"{params} has no line of its own for profile; write profile: {profile} there")
    write_atomic(params, changed.encode())


def _repro(folder: Path) -> None:
    """``dvc repro`` in this terminal. Raises PersresError if it fails."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=folder)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # DVC had it too, and stops its stage
        process.wait()
        raise
    if code:
        raise PersresError(
            "dvc repro failed, see above; finished units are saved, so correct the cause and run it again"
        )


@dataclass(frozen=True)
class State:
    """What a run of another profile changes: params.yaml, dvc.lock (None: absent), and the outputs, as hard links in ``saved``."""

    params: bytes
    lock: bytes | None
    saved: Path

    @classmethod
    def of(cls, folder: Path, saved: Path) -> State:
        """The present state of a checkout."""
        if saved.exists():  # of a run that was killed
            shutil.rmtree(saved)
        saved.mkdir(parents=True)
        for out in _outs(folder):
            _copy_links(folder / out, saved / out)
        lock = folder / LOCK
        return cls((folder / PARAMS).read_bytes(), lock.read_bytes() if lock.exists() else None, saved)

    def restore(self, folder: Path) -> None:
        """Put everything back, and remove the outputs that did not exist."""
        outs = _outs(folder)  # of the new dvc.lock too
        write_atomic(folder / PARAMS, self.params)
        if self.lock is None:
            (folder / LOCK).unlink(missing_ok=True)
        else:
            write_atomic(folder / LOCK, self.lock)
        for out in dict.fromkeys([*outs, *_outs(folder)]):
            _remove(folder / out)
            if (self.saved / out).exists():
                (folder / out).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self.saved / out, folder / out)
        shutil.rmtree(self.saved)
        log.warning("params.yaml, dvc.lock and data/ are as they were before this run")


def _copy_links(source: Path, target: Path) -> None:
    """Copy a file or a folder as hard links, where the file system has them: a stage replaces its output, and never writes into it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    elif source.exists():
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _outs(folder: Path) -> list[str]:
    """The outputs in data/ that dvc.lock names."""
    path = folder / LOCK
    lock = (read_yaml(path, Lock | None, "dvc repro writes it again") if path.exists() else None) or Lock()
    return [out.path for out in lock.outs() if out.path.startswith("data/") and ".." not in Path(out.path).parts]
