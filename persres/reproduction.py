"""``persres repro``: checks a profile, selects it and runs ``dvc repro``; a failure leaves params.yaml, dvc.lock and data/ as they were.

Units that were finished stay in the work folder and in DVC's cache, so that the next run goes on from there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.units.files import write_atomic
from persres.untrusted.documents import parse_yaml, read_yaml
from persres.versions.tracked import Lock

log = logging.getLogger(__name__)
PARAMS, LOCK = "params.yaml", "dvc.lock"


def reproduce(profile: str, folder: Path = Path()) -> None:
    """Select the profile and run ``dvc repro``. Raises PersresError if a stage fails, with everything as it was."""
    before = State.of(folder)
    try:
        select(folder / PARAMS, profile)
        _repro(folder)
    except BaseException:
        before.restore(folder)
        raise


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
    """What a run may change: params.yaml, dvc.lock (None: absent), and which outputs exist."""

    params: bytes
    lock: bytes | None
    outs: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, folder: Path) -> State:
        """The present state of a checkout."""
        lock = folder / LOCK
        outs = frozenset(out for out in _outs(folder) if (folder / out).exists())
        return cls((folder / PARAMS).read_bytes(), lock.read_bytes() if lock.exists() else None, outs)

    def restore(self, folder: Path) -> None:
        """Write params.yaml and dvc.lock as they were, and take data/ from DVC's cache, if another profile had been selected."""
        if (folder / PARAMS).read_bytes() == self.params:
            return
        created = [out for out in _outs(folder) if out not in self.outs and out.startswith("data/")]
        write_atomic(folder / PARAMS, self.params)
        if self.lock is None:
            (folder / LOCK).unlink(missing_ok=True)
        else:
            write_atomic(folder / LOCK, self.lock)
        if self.outs:
            checkout = [
                sys.executable,
                "-m",
                "dvc",
                "checkout",
                "--quiet",
                "--force",
                "--allow-missing",
                *sorted(self.outs),
            ]
            subprocess.run(checkout, cwd=folder, check=False)
        for out in created:
            path = folder / out
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        log.warning("params.yaml, dvc.lock and data/ are as they were before this run")


def _outs(folder: Path) -> list[str]:
    """The outputs in dvc.lock."""
    path = folder / LOCK
    lock = (read_yaml(path, Lock | None, "dvc repro writes it again") if path.exists() else None) or Lock()
    return [out.path for out in lock.outs()]
