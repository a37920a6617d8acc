"""git and dvc as programs, with their failures as one sentence and a mend. persres imports neither."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from persres.errors import PersresError
from persres.logging import plain, relay
from persres.versions.process_start import NotStarted, Starter, code_of

# What a server or its client says, in whatever words surround it, and the mend. The first that fits is told.
FIXES = (
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


class CommandError(PersresError):
    """``says`` what is wrong, ``mend`` what to do about it (or empty); together they are the sentence."""

    def __init__(self, says: str, mend: str = "") -> None:
        super().__init__(f"{says}; {mend}" if mend else says)
        self.says, self.mend = says, mend


class NoRemote(CommandError):
    """DVC knows no default remote."""


class NoDVC(CommandError):
    """DVC is not installed."""


def fix_for(said: str) -> str:
    """The mend for what a server, its client or a program said; empty where none is known."""
    return next((mend for pattern, mend in FIXES if re.search(pattern, said, re.IGNORECASE)), "")


def git(folder: Path, *arguments: str) -> str:
    """What git prints. Raises MendedError with what it complains of."""
    command, environment = ["git", *arguments], os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CommandError(
            f"git can't be run in {folder} ({error.strerror})", "install it, or name another folder"
        ) from error
    if done.returncode:
        raise _complaint("git", arguments, done.stderr + done.stdout)
    return done.stdout


def dvc(folder: Path, *arguments: str, shown: str = "") -> str:
    """What dvc prints. ``shown`` names long work: its bar is passed on to a terminal, a line now and then elsewhere. Raises MendedError
    with what it complains of and the mend, and where dvc is not installed."""
    if find_spec("dvc") is None:
        raise NoDVC("dvc is not installed here", "pip install 'persres[pipeline]'")
    if not folder.is_dir():
        raise CommandError(f"dvc can't be run in {folder}, which is no folder", "name another")
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    if shown:  # DVC draws no bar into a pipe of its own accord, nor can it see the terminal's width there
        columns, lines = shutil.get_terminal_size()
        environment |= {"DVC_IGNORE_ISATTY": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    try:
        code, out, err = _forked(folder, list(arguments), environment, shown)
    except NotStarted:
        code, out, err = _alone(folder, list(arguments), environment, shown)
    if code:
        raise _complaint("dvc", arguments, err + out)
    return out


@lru_cache(maxsize=1)
def _starter() -> Starter:
    return Starter()


def _forked(folder: Path, arguments: list[str], environment: dict[str, str], shown: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of dvc, forked from a process that has imported it. Raises NotStarted."""
    with tempfile.TemporaryFile("w+") as out:
        ours, its = os.pipe()
        with os.fdopen(ours, "rb") as said:
            try:
                answer = _starter().start(folder, arguments, environment, out.fileno(), its)
            finally:
                os.close(its)
            err = relay(said, shown)
        code = code_of(answer)
        out.seek(0)
        return code, out.read(), err


def _alone(folder: Path, arguments: list[str], environment: dict[str, str], shown: str) -> tuple[int, str, str]:
    """The same of a process that imports dvc itself."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with tempfile.TemporaryFile("w+") as out:
        run = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.PIPE)
        try:
            err = relay(run.stderr, shown)
            code = run.wait()
        finally:  # after Ctrl-C
            run.stderr.close()
            run.wait()
        out.seek(0)
        return code, out.read(), err


def configuration(folder: Path) -> dict[str, str]:
    """DVC's settings as they act in a folder, ``core.remote`` and the like. Raises PersresError."""
    lines = (line.partition("=") for line in dvc(folder, "config", "--list").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def _complaint(name: str, arguments: tuple[str, ...], said: str) -> CommandError:
    """One sentence of what a program said before it failed."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain(said)) if line.strip()]
    told = [line for line in lines if re.match(r"(ERROR|fatal|error|! \[)", line)] or lines[-1:] or ["no word said"]
    reason = " ".join(told)[:500].removeprefix("ERROR: ")
    return CommandError(f"{name} {arguments[0]} failed: {reason}", fix_for(said))
