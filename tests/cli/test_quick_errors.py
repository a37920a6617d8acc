"""A wrong call is refused before torch is imported, which takes seconds; a call without arguments prints help and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

HEAVY = ("torch", "diffusers", "transformers", "open_clip", "timm")
CALLS = {
    "personalize nothing": "no folder nothing",
    "personalize empty": "no photos in empty",
    "personalize one.png": "is not a folder",
    "personalize broken --class mug": "not a readable image",
    "personalize plain --class mug": "one colour",
    "personalize photos --class ''": "--class is empty",
    "personalize photos --class a/b": "is no class",
    "personalize photos --prompt beach": "exactly once",
    "personalize photos --prompts-file nothing.txt": "no file nothing.txt",
    "personalize photos --prompts-file empty.txt": "empty.txt has no prompt",
    "personalize photos --prompts-file beach.txt": "beach.txt, line 2",
    "personalize photos --name a.b": "not usable",
    "personalize photos --profile nothing": "no profile 'nothing'",
    "personalize photos --params nothing.yaml": "nothing.yaml",
    "personalize photos --out photos": "is the photos' folder",
    "personalize photos --crop oval": "--crop",
    "personalize photos --steps 0": "--steps",
    "personalize photos --rank 0": "--rank",
    "personalize photos --lr nan": "--lr",
    "personalize photos --device banana": "'banana' is no device",
    "personalize photos --model ./nothing": "no file or folder ./nothing",
    "generate nothing.safetensors --prompt 'a {}'": "no file nothing.safetensors",
    "generate one.png --prompt 'a {}'": "one.png is not a",
    "generate nothing.safetensors --prompt beach": "exactly once",
    "generate one.png --prompt 'a {}' --model models/sd/nothing": "no file or folder models/sd/nothing",
    "generate one.png --prompt 'a {}' --model nothing.safetensors": "no file or folder nothing.safetensors",
    "generate one.png --prompt 'a {}' --device gpu": "'gpu' is no device",
    "export nothing.safetensors --device 'cuda:x'": "'cuda:x' is no device",
    "import one.png --model ~nobody/x --class dog": "no file or folder",
    "export nothing.safetensors": "no file nothing.safetensors",
    "export one.png": "one.png is not a",
    "import nothing.safetensors --model m --class dog --name dog": "no file nothing.safetensors",
    "import nothing.safetensors --name dog --model m --class ' '": "--class is empty",
    "run nothing": "nothing",
    "run train --profile nothing": "no profile 'nothing'",
    "run --params nothing.yaml": "nothing.yaml not found",
    "profile nothing": "params.yaml not found",
    "estimate --profile nothing": "no profile 'nothing'",
    "preflight --profile nothing": "no profile 'nothing'",
    "preflight --params nothing.yaml": "nothing.yaml not found",
    "repro --profile nothing": "no dvc.yaml",
    "settings nothing": "nothing",
    "show --data nothing": "no nothing/tables/table1.csv",
    "compare a b --data nothing": "no nothing/scores/scores.parquet",
    "list --repo nothing": "nothing",
    "pull": "--all",
    "pull dog7 --all": "--all",
    "pull dog7 --repo nothing": "nothing",
    "diff v1 v2 --repo nothing": "nothing",
    "publish v1": "persres: ",
    "gc": "persres: ",
    "dev nothing": "No such command",
}
SCRIPT = (
    f"HEAVY = {HEAVY}"
    + """
import contextlib, io, json, shlex, sys
from persres.cli.main import main
results = {}
for call in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main(shlex.split(call))
    results[call] = [code, err.getvalue(), sorted(set(HEAVY) & set(sys.modules))]
print(json.dumps(results))
"""
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list]:
    """Exit code, message and heavy modules after each call, in one process of a folder that is no repository."""
    root = tmp_path_factory.mktemp("calls")
    for name in ("empty", "photos", "broken", "plain"):
        (root / name).mkdir()
    noise = Image.effect_noise((40, 40), 60)
    for place in ("photos/a.png", "photos/b.png", "one.png"):
        noise.save(root / place)
    Image.new("RGB", (40, 40)).save(root / "plain" / "a.png")
    (root / "broken" / "a.png").write_bytes(b"no image")
    (root / "empty.txt").write_text("\n  \n# a note\n")
    (root / "beach.txt").write_text("a {} at sea\nbeach\n")
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(list(CALLS)), cwd=root, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_refused_before_torch_is_imported(answers, call):
    code, message, heavy = answers[call]
    assert code in (1, 2) and CALLS[call] in message and message.count("persres: ") == 1 and "Traceback" not in message
    assert heavy == [], f"by this call or one before it: {message}"


@pytest.mark.parametrize("call", [[], ["dev"]], ids=["persres", "persres dev"])
def test_without_arguments_there_is_help_and_no_empty_message(call):
    done = subprocess.run([sys.executable, "-m", "persres", *call], capture_output=True, text=True, check=False)
    assert "Usage: persres" in done.stdout and done.stderr == "" and done.returncode == 2


def test_every_command_is_among_the_calls():
    from persres.cli.main import COMMANDS

    others = {"doctor", "link"}  # no argument to check; asks DVC first
    assert {call.split()[0] for call in CALLS} >= set(COMMANDS) - others
