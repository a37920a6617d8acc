"""What a manifest records of a unit's run."""

from __future__ import annotations

import subprocess
import time

import pytest
import torch

from persres.units.provenance import library_versions, measured, versions


def test_a_block_is_measured():
    with measured(torch.device("cpu")) as facts:
        time.sleep(0.05)
        assert facts == {}
    assert set(facts) == {"seconds", "peak_mib", "device", "versions"}
    assert 0.05 <= facts["seconds"] < 60 and facts["device"] == "cpu" and facts["versions"] == versions()


def test_the_peak_is_of_the_block_alone_in_mib():
    with measured(torch.device("cpu")) as before:
        pass
    with measured(torch.device("cpu")) as large:
        torch.ones(100 << 20, dtype=torch.uint8)
    with measured(torch.device("cpu")) as after:
        pass
    assert large["peak_mib"] - before["peak_mib"] == pytest.approx(100, abs=15)
    assert after["peak_mib"] < large["peak_mib"] - 50, "a worker's second unit does not show the first's peak"


def test_versions_name_the_libraries_and_the_commit(repo):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True, check=False)
    assert versions() == library_versions() | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})
    assert {"torch", "diffusers", "numpy", "persres", "python"} <= set(library_versions())
