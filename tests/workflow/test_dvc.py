"""``dvc repro`` on a small checkout: what it redoes, what Ctrl-C and kill -9 leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support.processes import hears_ctrl_c, seconds_to_stop


@pytest.fixture(scope="module")
def checkout(repo, tiny_profile, tmp_path_factory) -> Path:
    """A git and DVC repository with this project's stages and code, and tiny settings, reproduced once."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(repo / "persres", folder / "persres")  # with compiled modules
    shutil.copy(repo / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile}))
    (folder / ".gitignore").write_text(".work/\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    shutil.copy(repo / ".dvcignore", folder)
    assert ran(repro(folder)) == ["settings", "fetch", "macro_class", "train", "sample", "score", "tables"]
    return folder


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


def repro(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def change(folder: Path, section: str, **values) -> None:
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["tiny"][section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))


def start(folder: Path, ready: str) -> subprocess.Popen:
    """``dvc repro`` in a session of its own, up to the point where a new file like ``ready`` exists."""
    before = set(folder.glob(ready))
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    while set(folder.glob(ready)) <= before and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert not set(folder.glob(ready)) <= before, process.communicate()[0]
    return process


def test_redoes_only_what_a_change_touches(checkout):
    assert (checkout / "data" / "tables" / "table1.md").exists()
    started = time.monotonic()
    assert ran(repro(checkout)) == []
    assert time.monotonic() - started < 30
    change(checkout, "runtime", sample_batch=4, workers=2, cpu_offload=True)
    assert ran(repro(checkout)) == ["settings"], "where and how fast is not what"
    change(checkout, "sample", cfg_scale=2.0)
    assert ran(repro(checkout)) == ["settings", "sample", "score", "tables"]
    change(checkout, "runtime", workers=1)


def test_ctrl_c_and_kill_9_leave_nothing_half_published(checkout):
    change(checkout, "train", steps=80, checkpoint_every=4)
    began = time.monotonic()
    process = start(checkout, ".work/train/*/checkpoint.safetensors")
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - started < seconds_to_stop(started - began)  # 0.6 s on an idle machine
    assert process.returncode != 0
    assert not (checkout / "data" / "learned" / "ours").exists()
    process = start(checkout, ".work/train/*/manifest.json")
    process.kill()  # dvc alone: the stage it started runs on
    process.wait()
    finished = {p: p.stat().st_mtime_ns for p in checkout.glob(".work/train/*/manifest.json")}
    assert ran(repro(checkout, "train")) == ["train"]
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in finished.items())
    assert len(list((checkout / "data" / "learned" / "ours").glob("*.safetensors"))) == 3
