"""git and DVC: their commands as subprocesses, and every failure as one sentence with a fix."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from persres.errors import PersresError
from persres.logging import plain, relay
from persres.untrusted.names import digest
from persres.untrusted.text import redacted

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
OBJECT = re.compile(r"[0-9a-f]{32}(?:\.dir)?")  # an object's name
INSTALL = "pip install 'persres[pipeline]'"
GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "GIT_LITERAL_PATHSPECS": "1",
}


class CommandError(PersresError):
    """``problem`` and ``fix`` (or an empty string); the message has both."""

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem, self.fix = redacted(problem), fix
        super().__init__(f"{self.problem}; {fix}" if fix else self.problem)


class NoRemote(CommandError):
    """DVC has no default remote."""


class NoDVC(CommandError):
    """DVC is not installed."""


def fix_for(message: str) -> str:
    """The fix for a message of a server, its client or a command; empty if none is known."""
    return next((fix for pattern, fix in FIXES if re.search(pattern, message, re.IGNORECASE)), "")


def git(folder: Path, *arguments: str, seconds: float | None = None, offline: bool = False) -> str:
    """The output of a git command; bytes that are no UTF-8 become surrogates. ``offline``: it may not fetch what the folder lacks.

    Raises CommandError with git's message, and after ``seconds``.
    """
    environment = os.environ | GIT_ENVIRONMENT | ({"GIT_ALLOW_PROTOCOL": "none"} if offline else {})
    # not pipes: a helper process that outlives git would hold them open
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, env=environment, stdout=out, stderr=err, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            problem = f"git {arguments[0]} had no answer for {seconds:.0f} s"
            raise CommandError(problem, "check the address and the network, then run again") from error
        except (OSError, ValueError) as error:  # ValueError: NUL in an argument
            raise CommandError(
                f"git can't be run in {folder} ({getattr(error, 'strerror', None) or error})",
                "install it, or name another folder",
            ) from error
        output, errors = (_text(file) for file in (out, err))
    if done.returncode:
        raise _command_error("git", arguments, errors + output)
    return output


def commit_hash(text: str) -> str:
    """Return the hash of a git object, SHA-1 or SHA-256. Raises PersresError for other text."""
    return digest(text, "sha256" if len(text) == 64 else "sha1", "commit")


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")


def dvc(folder: Path, *arguments: str, label: str = "") -> str:
    """The output of a DVC command. ``label`` marks long work: a terminal shows its progress bar, a log file a line now and then.

    Raises CommandError with DVC's message, and NoDVC if it is not installed.
    """
    check_installed()
    if not folder.is_dir():
        raise CommandError(f"dvc can't be run in {folder}, which is no folder", "name another folder")
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    if label:  # DVC shows no bar in a pipe by default, and does not know the terminal's width there
        columns, lines = shutil.get_terminal_size()
        environment |= {"DVC_IGNORE_ISATTY": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    command = [sys.executable, "-P", "-m", "dvc", *arguments]  # -P: no module of the folder is run
    with tempfile.TemporaryFile() as out:
        run = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.PIPE)
        try:
            err = relay(run.stderr, label)
        finally:  # after Ctrl-C too
            run.stderr.close()
            code = run.wait()
        output = _text(out)
    if code:
        raise _command_error("dvc", arguments, err + output)
    return output


def check_installed() -> None:
    """Raises NoDVC without DVC."""
    if find_spec("dvc") is None:
        raise NoDVC("dvc is not installed", INSTALL)


@contextmanager
def remote_errors(what: str) -> Iterator[None]:
    """Errors inside, of DVC, its file systems and servers, become a CommandError that names ``what`` failed."""
    try:
        yield
    except PersresError:
        raise
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


def all_settings(folder: Path) -> dict[str, Any]:
    """DVC's configuration of the checkout ``folder`` from all levels, by sections. Raises DVC's errors, and NoDVC."""
    check_installed()
    from dvc.config import Config

    return Config(str(folder / ".dvc"))


def remote_files(remotes: dict[str, dict[str, Any]], name: str) -> tuple[Any, str]:
    """DVC's file system of a remote, with the user's credentials, and the remote's root in it. Raises DVC's errors, and NoDVC."""
    check_installed()
    from dvc.fs import get_cloud_fs

    cls, settings, root = get_cloud_fs({"remote": remotes}, name=name)
    return cls(**settings), root


@dataclass(frozen=True)
class ObjectStore:
    """DVC's cache or a remote: ``files`` and ``root`` are DVC's file system and the folder of the objects in it."""

    name: str
    files: Any
    root: str

    def objects(self) -> dict[str, tuple[str, int]]:
        """Path and bytes of every object, by its digest; a folder's listing ends in ``.dir``."""
        listing = self.files.fs
        listing.invalidate_cache()
        try:
            entries = listing.find(self.root, detail=True)
            if not isinstance(entries, Mapping):  # of DVC's local file system
                entries = {path: {"size": os.path.getsize(path)} for path in entries}
        except FileNotFoundError:
            return {}
        split = {path: path.replace(os.sep, "/").rsplit("/", 2)[-2:] for path in entries}
        names = {path: "".join(parts) for path, parts in split.items() if len(parts[0]) == 2}
        return {n: (path, int(entries[path].get("size") or 0)) for path, n in names.items() if OBJECT.fullmatch(n)}

    def read(self, path: str, most: int) -> bytes:
        """The content of an object, at most so many bytes."""
        with self.files.open(path, "rb") as file:
            return file.read(most)

    def remove(self, paths: list[str]) -> None:
        """Delete objects."""
        if paths:
            self.files.remove(paths)


@contextmanager
def object_stores(folder: Path) -> Iterator[list[ObjectStore]]:
    """The cache of a checkout and its default remote, while no other DVC command works there. Raises CommandError, also without one."""
    check_installed()
    with remote_errors("gc"):
        from dvc.repo import Repo
        from dvc_data.hashfile.db import get_index

        with Repo(str(folder)) as repo, repo.lock:
            remote = repo.cloud.get_remote_odb(None, "gc", hash_name="md5")
            name = repo.config["core"].get("remote")
            yield [
                ObjectStore("this clone's cache", repo.cache.local.fs, repo.cache.local.path),
                ObjectStore(str(name), remote.fs, remote.path),
            ]
            get_index(remote).clear()  # what DVC remembers of the remote


def _command_error(name: str, arguments: tuple[str, ...], output: str) -> CommandError:
    """The error lines of a command's output as one sentence."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain(output)) if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|fatal|error|! \[)", line)] or lines[-1:] or ["no message"]
    reason = " ".join(errors)[:500].removeprefix("ERROR: ")
    return CommandError(f"{name} {arguments[0]} failed: {reason}", fix_for(output))
