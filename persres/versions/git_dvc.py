"""git and DVC: their commands as subprocesses, DVC's files through its API, and every failure as one sentence with a fix."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.logging import plain, relay

# Pattern of a message of a server, its client or a command -> the fix. The first match counts.
FIXES = (
    (r"SignatureDoesNotMatch|signature we calculated", "the secret key is wrong: check AWS_SECRET_ACCESS_KEY"),
    (r"credentials|AccessKeyId|access key", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; if they are set, the server does not know the key"),
    (r"NoSuchBucket|bucket does not exist|No such bucket|\(404\)", "create the bucket, or fix the remote's url (dvc remote list)"),
    (r"Forbidden|AccessDenied|\b403\b|PermissionError", "these credentials have no permission for that: ask for access to the bucket"),
    (
        r"connect to the endpoint|Connection refused|ConnectionError|timed? ?out|Name or service not known",
        "the server does not answer: check the endpoint (dvc remote modify NAME endpointurl URL) and the network, then run again",
    ),
    (r"No space left", "free some space, then run again"),
    (r"No storage files available|missing-files|missing from|does not exist in .*cache|failed to pull|NoSuchKey|No such file", "the remote lacks a file: check the version out in a clone that has it, and dvc push"),
)  # fmt: skip
INSTALL = "pip install 'persres[pipeline]'"


class CommandError(PersresError):
    """``problem`` and ``fix`` (or an empty string); the message has both."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}; {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


class NoRemote(CommandError):
    """DVC has no default remote."""


class NoDVC(CommandError):
    """DVC is not installed."""


def fix_for(message: str) -> str:
    """The fix for a message of a server, its client or a command; empty if none is known."""
    return next((fix for pattern, fix in FIXES if re.search(pattern, message, re.IGNORECASE)), "")


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command. Raises CommandError with git's message."""
    command, environment = ["git", *arguments], os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CommandError(
            f"git can't be run in {folder} ({error.strerror})", "install it, or name another folder"
        ) from error
    if done.returncode:
        raise _command_error("git", arguments, done.stderr + done.stdout)
    return done.stdout


def dvc(folder: Path, *arguments: str, label: str = "") -> str:
    """The output of a DVC command. ``label`` marks long work: a terminal shows its progress bar, a log file a line now and then.

    Raises CommandError with DVC's message, and NoDVC if it is not installed.
    """
    _check_installed()
    if not folder.is_dir():
        raise CommandError(f"dvc can't be run in {folder}, which is no folder", "name another folder")
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    if label:  # DVC shows no bar in a pipe by default, and does not know the terminal's width there
        columns, lines = shutil.get_terminal_size()
        environment |= {"DVC_IGNORE_ISATTY": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    command = [sys.executable, "-m", "dvc", *arguments]
    with tempfile.TemporaryFile("w+") as out:
        run = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.PIPE)
        try:
            err = relay(run.stderr, label)
        finally:  # after Ctrl-C too
            run.stderr.close()
            code = run.wait()
        out.seek(0)
        output = out.read()
    if code:
        raise _command_error("dvc", arguments, err + output)
    return output


def _check_installed() -> None:
    if find_spec("dvc") is None:
        raise NoDVC("dvc is not installed", INSTALL)


@contextmanager
def dvc_files(what: str, url: str, **options: Any) -> Iterator[Any]:
    """A ``dvc.api.DVCFileSystem`` of a repository. Errors inside become a CommandError that names ``what`` failed."""
    _check_installed()
    from dvc.api import DVCFileSystem

    try:
        yield DVCFileSystem(url, **options)
    except Exception as error:
        causes = "; ".join(dict.fromkeys(_messages(error)))
        raise CommandError(f"dvc {what} failed: {causes[:500]}", fix_for(causes)) from error


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error) or type(error).__name__
        error = error.__cause__ or error.__context__


def configuration(folder: Path) -> dict[str, str]:
    """DVC's settings in a folder, ``core.remote`` and the like. Raises CommandError."""
    lines = (line.partition("=") for line in dvc(folder, "config", "--list").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def _command_error(name: str, arguments: tuple[str, ...], output: str) -> CommandError:
    """The error lines of a command's output as one sentence."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain(output)) if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|fatal|error|! \[)", line)] or lines[-1:] or ["no message"]
    reason = " ".join(errors)[:500].removeprefix("ERROR: ")
    return CommandError(f"{name} {arguments[0]} failed: {reason}", fix_for(output))
