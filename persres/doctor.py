"""``persres doctor``: checks of this machine, each with its fix: GPU, versions, disk, git, credentials, the remote, the server."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from persres.errors import PersresError
from persres.untrusted.text import printable, redacted

LONGEST = 2000  # characters of a finding
ENOUGH_GIB = 20  # Stable Diffusion's weights, encoders and scratch files
NEEDED = ("torch", "diffusers", "transformers", "open_clip_torch", "timm", "safetensors")
INSTALL_PIPELINE = "pip install 'persres[pipeline]' -c constraints.txt, for versions and flows"
SEE_ALSO = "see dvc remote list, dvc doctor and docs/versions.md"
SOURCES = {
    "env": "the environment",
    "shared-credentials-file": "~/.aws/credentials",
    "iam-role": "the instance's role",
    "explicit": "DVC's configuration",
}
PIPELINE = ("dvc", "dvc-s3", "boto3", "prefect")


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``state`` is ok, note (works with limits) or fails; ``fix`` is empty if there is nothing to do."""

    what: str
    state: str
    says: str
    fix: str = ""

    def __post_init__(self) -> None:
        for name in ("says", "fix"):  # versions, addresses and answers come from outside
            object.__setattr__(self, name, printable(redacted(getattr(self, name)), LONGEST))


def examine(folder: Path = Path()) -> list[Finding]:
    """The results of all checks."""
    checks: tuple[Callable[[Path], Finding], ...] = (
        _libraries, _pipeline, _gpu, _disk, _git, _credentials, _remote, _server,
    )  # fmt: skip
    return [check(folder) for check in checks]


def as_text(findings: list[Finding]) -> str:
    """One line per check, with its fix below."""
    lines = [f"{f.state:<6}{f.what:<11}{f.says}" + (f"\n{'':17}-> {f.fix}" if f.fix else "") for f in findings]
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """The same for scripts."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def _versions(names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    installed, missing = {}, []
    for name in names:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    return installed, missing


def _libraries(folder: Path) -> Finding:
    installed, missing = _versions(NEEDED)
    says = f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {number}" for name, number in installed.items())
    if missing:
        return Finding("libraries", "fails", f"{', '.join(missing)} missing", "pip install persres -c constraints.txt")
    return Finding("libraries", "ok", says)


def _pipeline(folder: Path) -> Finding:
    installed, missing = _versions(PIPELINE)
    if missing:
        return Finding("pipeline", "note", f"{', '.join(missing)} missing", INSTALL_PIPELINE)
    return Finding("pipeline", "ok", ", ".join(f"{name} {number}" for name, number in installed.items()))


def _gpu(folder: Path) -> Finding:
    try:
        import torch
    except ImportError as error:  # "libraries" says how to install it
        return Finding("GPU", "note", f"can't be checked without torch ({error})", "install the libraries first")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "GPU", "ok", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        )
    built = f"torch {torch.__version__} was built {'for CUDA ' + torch.version.cuda if torch.version.cuda else 'without CUDA'}"
    fix = "small models need none; for Stable Diffusion use a machine with an NVIDIA GPU, its driver and torch's CUDA build"
    return Finding("GPU", "note", f"none available; {built}", fix)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder.resolve()).free / 2**30
    if free < 1:
        return Finding("disk", "fails", f"{free:.1f} GiB free in {folder.resolve()}", "free some space")
    few = free < ENOUGH_GIB
    fix = f"Stable Diffusion needs {ENOUGH_GIB} GiB and more (see persres estimate)" if few else ""
    return Finding("disk", "note" if few else "ok", f"{free:.0f} GiB free in {folder.resolve()}", fix)


def _git(folder: Path) -> Finding:
    from persres.versions.git_dvc import git

    try:
        commit = git(folder, "rev-parse", "--short", "HEAD").strip()
    except PersresError as error:
        return Finding("git", "note", str(error), "only versions need git: publish from a clone")
    dirty = git(folder, "status", "--porcelain").strip()
    return Finding("git", "ok", f"at {commit}{', with uncommitted changes' if dirty else ''}")


def _credentials(folder: Path) -> Finding:
    """S3 credentials of the default remote, as DVC reads them; shows the end of the key and nothing of the secret."""
    from persres.versions.store import NoBoto, aws_session

    fix, settings = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", _remote_settings(folder)
    try:
        credentials = aws_session(settings).get_credentials()
        key = credentials and credentials.get_frozen_credentials().access_key
    except NoBoto:
        return Finding("S3 keys", "note", "can't be checked without boto3", INSTALL_PIPELINE)
    except Exception as error:  # half of a pair, an unknown profile, a missing role, a file that is none
        return Finding("S3 keys", "fails", str(error), fix)
    if not key:
        return Finding("S3 keys", "note", "none set", f"only a remote in S3 needs them: {fix}")
    source = SOURCES.get(credentials.method, credentials.method)
    if credentials.method == "shared-credentials-file":
        source = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or settings.get("credentialpath") or source
    profile = f", profile {settings['profile']}" if "profile" in settings else ""
    return Finding("S3 keys", "ok", f"…{key[-4:]}, from {source}{profile}")


def _remote_settings(folder: Path) -> dict[str, str]:
    """DVC's settings of the default remote; empty if it is not in S3, or there is none."""
    from persres.versions.git_dvc import CommandError, configuration
    from persres.versions.store import s3_remote

    try:
        remote = s3_remote(configuration(folder))
    except CommandError:  # "remote" says why
        return {}
    return remote.settings if remote else {}


def _remote(folder: Path) -> Finding:
    from persres.versions.git_dvc import CommandError, NoDVC, NoRemote, configuration
    from persres.versions.publish import default_remote
    from persres.versions.store import check_health, s3_remote

    try:
        settings = configuration(folder)
        named, remote = default_remote(settings), s3_remote(settings)
        if remote is not None:
            check_health(remote)
    except NoDVC as error:  # "pipeline" only notes it too
        return Finding("remote", "note", f"not checked: {error.problem}", INSTALL_PIPELINE)
    except CommandError as error:
        return Finding(
            "remote", "note" if isinstance(error, NoRemote) else "fails", error.problem, error.fix or SEE_ALSO
        )
    tried = "; an object was written, read and deleted" if remote else "; not in S3, so not tried"
    return Finding("remote", "ok", f"{named}{tried}")


def _server(folder: Path) -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("server", "note", "PREFECT_API_URL is not set: flows start a temporary server")
    shown = redacted(url)
    try:
        with urllib.request.urlopen(_health(url), timeout=10) as answer:  # noqa: S310 - HTTP only, by _health
            return Finding("server", "ok", f"{shown} answers {answer.status}")
    except Exception as error:  # http.client's errors are neither OSError nor ValueError
        return Finding(
            "server", "fails", f"{shown}: {error}", "start it (prefect server start), or fix PREFECT_API_URL"
        )


def _health(url: str) -> urllib.request.Request:
    """The request for the server's health; user and password of the address go into a header. Raises ValueError for other addresses."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address of a server")
    user, _, host = parts.netloc.rpartition("@")
    address = urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/health", "", ""))
    request = urllib.request.Request(address)  # noqa: S310 - checked above
    if user:
        request.add_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    return request
