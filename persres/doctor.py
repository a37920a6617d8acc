"""``persres doctor``: checks of this machine, each with its fix: GPU, versions, disk, git, credentials, the remote, the server."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from persres.errors import PersresError

ENOUGH_GIB = 20  # Stable Diffusion's weights, encoders and scratch files
NEEDED = ("torch", "diffusers", "transformers", "open_clip_torch", "timm", "safetensors")
INSTALL_PIPELINE = "pip install 'persres[pipeline]' -c constraints.txt, for versions and flows"
SEE_ALSO = "see dvc remote list, dvc doctor and docs/versions.md"
SOURCES = {"env": "the environment", "shared-credentials-file": "~/.aws/credentials", "iam-role": "the instance's role"}
PIPELINE = ("dvc", "dvc-s3", "boto3", "prefect")


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``state`` is ok, note (works with limits) or fails; ``fix`` is empty if there is nothing to do."""

    what: str
    state: str
    says: str
    fix: str = ""


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
    """S3 credentials as boto3 and DVC read them; shows the end of the key and nothing of the secret."""
    fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    try:
        from boto3.session import Session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return Finding("S3 keys", "note", "can't be checked without boto3", INSTALL_PIPELINE)
    try:
        credentials = Session().get_credentials()
        key = credentials and credentials.get_frozen_credentials().access_key
    except BotoCoreError as error:  # half of a pair, an unknown profile, a missing role
        return Finding("S3 keys", "fails", str(error), fix)
    if not key:
        return Finding("S3 keys", "note", "none set", f"only a remote in S3 needs them: {fix}")
    return Finding("S3 keys", "ok", f"…{key[-4:]}, from {SOURCES.get(credentials.method, credentials.method)}")


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
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10) as answer:
            return Finding("server", "ok", f"{url} answers {answer.status}")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("server", "fails", f"{url}: {error}", "start it (prefect server start), or fix PREFECT_API_URL")
