"""git and dvc as programs, with their failures as one sentence and a mend. persres imports neither."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from persres.errors import PersresError

# What a server or its client says, in whatever words surround it, and the mend. The first that fits is told.
MENDS = (
    (r"SignatureDoesNotMatch|signature we calculated", "the secret key is wrong: look at AWS_SECRET_ACCESS_KEY"),
    (r"credentials|AccessKeyId|access key", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; if they are set, that server does not know the key"),
    (r"NoSuchBucket|bucket does not exist|No such bucket|\(404\)", "create the bucket, or mend the remote's url (dvc remote list)"),
    (r"Forbidden|AccessDenied|\b403\b|PermissionError", "these credentials may not do that there: ask for access to the bucket"),
    (
        r"connect to the endpoint|Connection refused|ConnectionError|timed? ?out|Name or service not known",
        "the server does not answer: look at the endpoint (dvc remote modify NAME endpointurl URL) and the network, then run again",
    ),
    (r"No space left", "free some space, then run again"),
    (r"No storage files available|missing-files|missing from|does not exist in .*cache|failed to pull|NoSuchKey|No such file", "some of it is not in the remote: check the version out in a clone that has it, and dvc push"),
)  # fmt: skip


def mend_for(said: str) -> str | None:
    """The mend for what a server, its client or a program said; None where none is known."""
    return next((mend for pattern, mend in MENDS if re.search(pattern, said, re.IGNORECASE)), None)


def git(folder: Path, *arguments: str) -> str:
    """What git prints. Raises PersresError with what it complains of."""
    return _call(folder, ["git", *arguments], "git", os.environ | {"GIT_TERMINAL_PROMPT": "0"})


def dvc(folder: Path, *arguments: str) -> str:
    """What dvc prints. Raises PersresError with what it complains of and the mend, and where dvc is not installed."""
    if find_spec("dvc") is None:
        raise PersresError("dvc is not installed here; pip install 'persres[pipeline]'")
    return _call(folder, [sys.executable, "-m", "dvc", *arguments], "dvc", os.environ | {"DVC_NO_ANALYTICS": "1"})


def configuration(folder: Path) -> dict[str, str]:
    """DVC's settings as they act in a folder, ``core.remote`` and the like. Raises PersresError."""
    lines = (line.partition("=") for line in dvc(folder, "config", "--list").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def _call(folder: Path, command: list[str], name: str, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PersresError(
            f"{name} can't be run in {folder} ({error.strerror}); install it, or name another folder"
        ) from error
    if done.returncode:
        raise PersresError(_sentence(name, command, done.stderr + done.stdout))
    return done.stdout


def _sentence(name: str, command: list[str], said: str) -> str:
    verb = command[command.index(name) + 1] if name in command else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(ERROR|fatal|error|! \[)", line)] or lines[-1:] or ["no word said"]
    reason = " ".join(told)[:500].removeprefix("ERROR: ")
    mend = mend_for(said)
    return f"{name} {verb} failed: {reason}" + (f"; {mend}" if mend else "")
