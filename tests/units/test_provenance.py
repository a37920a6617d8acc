"""What a manifest records of a unit's run."""

from __future__ import annotations

import subprocess
import sys
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


PEAKS = """
import torch
from persres.units.provenance import measured

def peak(mib):
    with measured(torch.device("cpu")) as facts:
        torch.ones(mib << 20, dtype=torch.uint8)
    return facts["peak_mib"]

print(peak(1), peak(100), peak(1))
"""


def test_the_peak_is_of_the_block_alone_in_mib():
    """In a fresh process: what a long one frees meanwhile would count."""
    done = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True)
    before, large, after = map(int, done.stdout.split())
    assert large - before == pytest.approx(100, abs=15)
    assert after < large - 50, "a worker's second unit does not show the first's peak"


def test_versions_name_the_libraries_and_the_commit(repo):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True, check=False)
    assert versions() == library_versions() | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})
    assert {"torch", "diffusers", "numpy", "persres", "python"} <= set(library_versions())
