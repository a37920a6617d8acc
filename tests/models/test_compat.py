"""torchvision next to a CPU build of torch: one that fits declares its operators itself, and a second declaration would end the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Each case in a fork of a fresh process, since operators can't be taken back. The library of the first case is torch's own registration.
CASES = """
import importlib, importlib.util, json, os, sys
import torch

def fits(path):
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    libraries.append(library)

def other_build(path):
    raise OSError("libtorch_cuda.so: cannot open shared object file")

def half_imported(path):
    raise AssertionError("not where torch is half imported")

libraries = []
for name, load in {"fits": fits, "other build": other_build, "no library": half_imported, "half imported": half_imported}.items():
    if os.fork() == 0:
        from persres.models import compat
        sys.path.insert(0, f"{sys.argv[1]}/{name}")
        torch.ops.load_library, torch.version.cuda = load, None
        if name == "half imported":
            hidden = torch.library
            del torch.library
        importlib.util.find_spec("torchvision")
        if name == "half imported":
            torch.library = hidden
        declared = hasattr(torch.ops.torchvision, "nms")
        print(json.dumps({name: [declared, bool(compat._libraries), bool(libraries)]}), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[bool]]:
    """By case: whether the operators are declared, by us, by torchvision."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("fits", "other build", "no library", "half imported"):
        package = folder / name / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        if name != "no library":
            (package / "_C.so").touch()
    command = [sys.executable, "-c", f"import persres\n{CASES}", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return {name: result for line in done.stdout.splitlines() for name, result in json.loads(line).items()}


EXPECTED = {
    "fits": [True, False, True],
    "other build": [True, True, False],
    "no library": [True, True, False],
    "half imported": [False, False, False],
}


@pytest.mark.parametrize("case", EXPECTED)
def test_the_operators_are_declared_once(outcomes, case):
    assert outcomes[case] == EXPECTED[case]
