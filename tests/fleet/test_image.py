"""The worker's image: what goes into it, who runs in it, and what it is built on. Docker itself is not needed here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SECRETS = [
    ".dvc/config.local", ".dvc/config", ".dvc/tmp/x", ".env", ".env.production", "persres/.env", "flows/prod.env", "flows/.env.local",
    ".aws/credentials", "credentials", "credentials.json", "persres/credentials.yaml", ".netrc", ".ssh/id_rsa", "id_ed25519", "tasks/id_rsa",
    "key.pem", "persres/server.key", "flows/cert.p12", "client_secret.json", "persres/hub_token", ".huggingface/token", ".prefect/profiles.toml",
    ".git/config", "persres/.git/config", ".venv/bin/python", ".work/train/x", "personal/dog/photo.jpg", "data/samples/x.zip", "shared/notes",
    "docs/fleet.md", "tests/conftest.py", ".config/gcloud/x", "kubeconfig", "anything-else", "persres/config.local",
]  # fmt: skip


def pattern(text: str) -> re.Pattern:
    """A line of .dockerignore as Docker reads it: for a path, or any folder above it."""
    regex = "".join(
        {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
        for part in re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/"))
    )
    return re.compile(f"{regex}(?:/.*)?")


def left_out(path: str, lines: list[str]) -> bool:
    """The last line that fits decides."""
    out = False
    for line in lines:
        if pattern(line.removeprefix("!")).fullmatch(path):
            out = not line.startswith("!")
    return out


@pytest.fixture
def lines(repo) -> list[str]:
    text = (repo / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in text if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("path", SECRETS)
def test_no_credential_and_no_data_goes_into_the_image(lines, path):
    assert left_out(path, lines)


def test_all_that_a_worker_runs_goes_into_the_image(repo, lines):
    done = subprocess.run(
        ["git", "ls-files", "persres", "flows", "tasks"], cwd=repo, capture_output=True, text=True, check=False
    )
    files = done.stdout.splitlines() or [str(p.relative_to(repo)) for p in (repo / "persres").rglob("*.py")]
    needed = ["Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "params.yaml", "prefect.yaml"]
    assert len(files) > 100 and not [path for path in [*files, *needed] if left_out(path, lines)]


def test_the_image_runs_as_a_user_on_a_pinned_base(repo):
    steps = [line for line in Path(repo / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    bases = [step for step in steps if step.startswith("FROM")]
    assert bases and all(
        re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base) for base in bases
    )
    (user,) = [number for number, step in enumerate(steps) if step.startswith("USER")]
    assert re.fullmatch(r"USER [1-9]\d+:[1-9]\d+", steps[user]), "by number, for runAsNonRoot"
    assert not [step for step in steps[user:] if step.startswith(("RUN", "COPY", "ADD"))], (
        "what is built belongs to root"
    )
    assert not [step for step in steps if re.search(r"(?i)(secret|token|password|access_key)", step)]
