"""The round trip of a version on this machine: publish v1 and v2, pull v1 in another folder, sample with it (``make demo-s3``).

The server is moto's, on loopback, with data in memory; the publishing studio is a clone of this repository. The steps are logged and
written to data/s3/round_trip.json.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from persres.errors import PersresError
from persres.logging import show_logs
from persres.versions.git_dvc import git
from persres.versions.repository import md5_of

log = logging.getLogger("persres.experiments.s3_demo")  # as a program this module has another name
CONCEPT, BUCKET = "rally_car", "persres-demo"
LEARNED = f"data/learned/ours/{CONCEPT}.safetensors"
MAX_SECONDS = 60.0  # seconds, from nothing to an image


class RoundTrip:
    """Runs each step in a folder; logs and records its title and seconds."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment, self.steps = environment, []

    def run(self, title: str, folder: Path, *command: str) -> str:
        """Return the command's stdout. Raises PersresError with its last output."""
        started = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False)
        seconds = round(time.monotonic() - started, 1)
        if done.returncode:
            raise PersresError(f"{title}: {' '.join(command)} failed\n{(done.stdout + done.stderr)[-2000:]}")
        log.info("%6.1f s  %s", seconds, title)
        self.steps.append({"step": title, "seconds": seconds})
        return done.stdout

    def persres(self, title: str, folder: Path, *arguments: str) -> str:
        """Like :meth:`run`, for a persres command."""
        return self.run(title, folder, sys.executable, "-m", "persres", *arguments)

    def dvc(self, title: str, folder: Path, *arguments: str) -> str:
        """Like :meth:`run`, for a DVC command."""
        return self.run(title, folder, sys.executable, "-m", "dvc", *arguments)


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server in a process; yield its endpoint. Raises PersresError if moto is missing or does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise PersresError("moto's server does not start; make setup-dev installs it")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _studio(trip: RoundTrip, root: Path, folder: Path, endpoint: str) -> tuple[Path, Path]:
    """Clone this repository with one concept, a separate origin and a remote in S3; return origin and clone."""
    import boto3

    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    origin, studio = folder / "origin.git", folder / "studio"
    trip.run("clone the repository", folder, "git", "clone", "-q", "--bare", str(root), str(origin))
    for tag in git(origin, "tag").split():
        git(origin, "tag", "-d", tag)
    trip.run("clone the studio", folder, "git", "clone", "-q", str(origin), str(studio))
    _settings(studio, steps=40)
    trip.dvc("add a remote", studio, "remote", "add", "-q", "-d", "store", f"s3://{BUCKET}/studio")
    trip.dvc("set its endpoint", studio, "remote", "modify", "-q", "store", "endpointurl", endpoint)
    git(studio, "commit", "-q", "-a", "-m", "one concept, a remote")
    return origin, studio


def _settings(studio: Path, steps: int) -> None:
    """Set one concept and four prompts, so that the run takes minutes."""
    import yaml

    path = studio / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    profile = settings[settings["profile"]]
    profile["fetch"]["concepts"], profile["train"]["steps"] = [CONCEPT], steps
    profile["sample"] |= {"prompts": 4, "images_per_prompt": 1}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def round_trip(root: Path, work: Path, out: Path) -> Path:
    """Run all steps in a folder outside of any checkout (DVC would take a repository in it for the checkout); return the record's path.

    Raises PersresError, and writes no record, if a step fails, if the pulled v1 differs from the published one, or if it takes too long.
    """
    folder = work.resolve() / "persres-demo-s3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    provenance = _provenance(root)  # before the run: commits may follow meanwhile
    with s3_server() as endpoint:
        trip = RoundTrip(_environment(folder))
        os.environ |= {key: trip.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        origin, studio = _studio(trip, root, folder, endpoint)
        digests = {}
        for name, steps in (("v1", 40), ("v2", 80)):
            _settings(studio, steps)
            trip.dvc(f"train, sample and score: {steps} iterations", studio, "repro")
            trip.persres(f"publish {name}", studio, "publish", name, "-m", f"{steps} iterations")
            digests[name] = md5_of(studio / LEARNED)
        record = _elsewhere(trip, origin, folder, digests)
    record |= {"digests": digests, "steps": trip.steps, "provenance": provenance}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "round_trip.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _elsewhere(trip: RoundTrip, origin: Path, folder: Path, digests: dict[str, str]) -> dict:
    """Pull v1 with git's address and a key, verify it and sample with it. Raises PersresError if it is not v1, or takes too long."""
    target = folder / "elsewhere"
    target.mkdir()
    source = ("--repo", str(origin), "--remote", "store")  # the option allows the credentials there
    started = time.monotonic()
    trip.persres("pull v1 in another folder", target, "pull", CONCEPT, "--rev", "v1", *source)
    prompt = ("--prompt", "a photo of a {} on the beach", "--steps", "25")
    image = (
        trip.persres("sample an image", target, "generate", f"{CONCEPT}.safetensors", *prompt).strip().splitlines()[-1]
    )
    seconds = round(time.monotonic() - started, 1)
    if md5_of(target / f"{CONCEPT}.safetensors") != digests["v1"] or digests["v1"] == digests["v2"]:
        raise PersresError(f"v1 came back as {md5_of(target / f'{CONCEPT}.safetensors')}; published were {digests}")
    if seconds > MAX_SECONDS:
        raise PersresError(
            f"pulling v1 and sampling took {seconds:.1f} s, the goal is {MAX_SECONDS:.0f} s; see the steps above, and try again on"
            " an idle machine"
        )
    versions = json.loads(trip.persres("list versions", target, "list", "--repo", str(origin), "--json"))
    compared = json.loads(trip.persres("compare v1 and v2", target, "diff", "v1", "v2", *source, "--json"))
    log.info("pulled and sampled in %.1f s (goal %.0f): %s", seconds, MAX_SECONDS, target / image)
    return {"versions": versions, "pulled_and_sampled_s": seconds, "goal_s": MAX_SECONDS, "difference": compared}


def _provenance(root: Path) -> dict[str, str]:
    """Commit and library versions; ``-dirty``: the checkout had changes."""
    from persres.units.provenance import library_versions

    dirty = "-dirty" if git(root, "status", "--porcelain", "--", "persres", "params.yaml", "dvc.yaml").strip() else ""
    tools = {name: version(name) for name in ("dvc", "dvc-s3", "boto3", "moto")}
    return {"commit": git(root, "rev-parse", "HEAD").strip() + dirty} | library_versions() | tools


def _environment(folder: Path) -> dict[str, str]:
    """S3 credentials, a separate cache, and an author for commits."""
    identity = {f"GIT_{role}_{what}": "persres-demo" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {
        "PERSRES_CACHE": str(folder / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": path,
    }
    return os.environ | identity | keys | settings


if __name__ == "__main__":
    show_logs()
    log.info("%s", round_trip(Path.cwd(), Path(tempfile.gettempdir()), Path("data/s3")))
