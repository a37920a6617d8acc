"""The whole round trip of a version, on this machine: a server, v1, trained again, v2, v1 pulled elsewhere and drawn (make demo-s3).

The server is moto's, on loopback, with data in memory; the studio that publishes is a clone of this repository. What happened is printed
and written to data/s3/round_trip.json.
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
DRAWN_WITHIN = 60.0  # seconds, from nothing to a picture


class RoundTrip:
    """Runs each step in a folder, prints it with its seconds, and keeps both for the record."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment, self.steps = environment, []

    def run(self, says: str, folder: Path, *command: str) -> str:
        """What the command prints. Raises PersresError with its last words."""
        started = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False)
        seconds = round(time.monotonic() - started, 1)
        if done.returncode:
            raise PersresError(f"{says}: {' '.join(command)} failed\n{(done.stdout + done.stderr)[-2000:]}")
        log.info("%6.1f s  %s", seconds, says)
        self.steps.append({"step": says, "seconds": seconds})
        return done.stdout

    def persres(self, says: str, folder: Path, *arguments: str) -> str:
        """As :meth:`run`, of our own command line."""
        return self.run(says, folder, sys.executable, "-m", "persres", *arguments)

    def dvc(self, says: str, folder: Path, *arguments: str) -> str:
        """As :meth:`run`, of DVC's."""
        return self.run(says, folder, sys.executable, "-m", "dvc", *arguments)


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's server in a process of its own; gives its endpoint. Raises PersresError where moto is missing or does not start."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
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
    """A clone of this repository with one concept to learn, an origin of its own and a remote in S3."""
    import boto3

    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    origin, studio = folder / "origin.git", folder / "studio"
    trip.run("the repository cloned", folder, "git", "clone", "-q", "--bare", str(root), str(origin))
    for tag in git(origin, "tag").split():
        git(origin, "tag", "-d", tag)
    trip.run("a studio cloned from it", folder, "git", "clone", "-q", str(origin), str(studio))
    _settings(studio, steps=40)
    trip.dvc("a remote named", studio, "remote", "add", "-q", "-d", "store", f"s3://{BUCKET}/studio")
    trip.dvc("with its endpoint", studio, "remote", "modify", "-q", "store", "endpointurl", endpoint)
    git(studio, "commit", "-q", "-a", "-m", "one concept, a remote")
    return origin, studio


def _settings(studio: Path, steps: int) -> None:
    """One concept, four prompts, so that the trip takes minutes."""
    import yaml

    path = studio / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    profile = settings[settings["profile"]]
    profile["fetch"]["concepts"], profile["train"]["steps"] = [CONCEPT], steps
    profile["sample"] |= {"prompts": 4, "images_per_prompt": 1}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def round_trip(root: Path, work: Path, out: Path) -> Path:
    """Do all of it, in a folder outside of any checkout (DVC would take a repository within it for the checkout itself); returns the
    record. Raises PersresError where a step fails, v1 comes back other than it was published, or is drawn too late; then no record is
    written."""
    folder = work.resolve() / "persres-demo-s3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    provenance = _provenance(root)  # now: somebody may commit meanwhile
    with s3_server() as endpoint:
        trip = RoundTrip(_environment(folder))
        os.environ |= {key: trip.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        origin, studio = _studio(trip, root, folder, endpoint)
        digests = {}
        for name, steps in (("v1", 40), ("v2", 80)):
            _settings(studio, steps)
            trip.dvc(f"trained, drawn and scored: {steps} iterations", studio, "repro")
            trip.persres(f"published as {name}", studio, "publish", name, "-m", f"{steps} iterations")
            digests[name] = md5_of(studio / LEARNED)
        record = _elsewhere(trip, origin, folder, digests)
    record |= {"digests": digests, "steps": trip.steps, "provenance": provenance}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "round_trip.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _elsewhere(trip: RoundTrip, origin: Path, folder: Path, digests: dict[str, str]) -> dict:
    """Somebody with git's address and a key: v1, checked and drawn with. Raises PersresError where that is not v1, or took too long."""
    place = folder / "elsewhere"
    place.mkdir()
    started = time.monotonic()
    trip.persres("v1 pulled elsewhere", place, "pull", CONCEPT, "--rev", "v1", "--repo", str(origin))
    prompt = ("--prompt", "a photo of a {} on the beach", "--steps", "25")
    drawn = (
        trip.persres("and drawn with", place, "generate", f"{CONCEPT}.safetensors", *prompt).strip().splitlines()[-1]
    )
    seconds = round(time.monotonic() - started, 1)
    if md5_of(place / f"{CONCEPT}.safetensors") != digests["v1"] or digests["v1"] == digests["v2"]:
        raise PersresError(f"v1 came back as {md5_of(place / f'{CONCEPT}.safetensors')}; published were {digests}")
    if seconds > DRAWN_WITHIN:
        raise PersresError(
            f"v1 was pulled and drawn in {seconds:.1f} s, and the goal is {DRAWN_WITHIN:.0f} s; look at the steps above, and try again on"
            " an idle machine"
        )
    versions = json.loads(trip.persres("versions listed", place, "list", "--repo", str(origin), "--json"))
    compared = json.loads(
        trip.persres("v1 and v2 compared", place, "diff", "v1", "v2", "--repo", str(origin), "--json")
    )
    log.info("pulled and drawn in %.1f s (goal %.0f): %s", seconds, DRAWN_WITHIN, place / drawn)
    return {"versions": versions, "pulled_and_drawn_s": seconds, "goal_s": DRAWN_WITHIN, "difference": compared}


def _provenance(root: Path) -> dict[str, str]:
    """Which code did it, with which libraries. A commit that ends in ``-dirty`` is not what ran."""
    from persres.units.provenance import library_versions

    dirty = "-dirty" if git(root, "status", "--porcelain", "--", "persres", "params.yaml", "dvc.yaml").strip() else ""
    tools = {name: version(name) for name in ("dvc", "dvc-s3", "boto3", "moto")}
    return {"commit": git(root, "rev-parse", "HEAD").strip() + dirty} | library_versions() | tools


def _environment(folder: Path) -> dict[str, str]:
    """Keys as S3 asks for them, a cache of the trip's own, and a name for its commits."""
    who = {f"GIT_{role}_{what}": "persres-demo" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {
        "PERSRES_CACHE": str(folder / "cache"),
        "DVC_NO_ANALYTICS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": path,
    }
    return os.environ | who | keys | own


if __name__ == "__main__":
    show_logs()
    log.info("%s", round_trip(Path.cwd(), Path(tempfile.gettempdir()), Path("data/s3")))
