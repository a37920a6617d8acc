"""personalize checks before the work what it can, gives what is finished, and never gives one folder the residual of other photos."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from persres import workflow
from persres.cli.main import main
from persres.errors import PersresError


def photos_in(folder: Path, colour: str) -> Path:
    folder.mkdir()
    for number in range(3):
        image = Image.new("RGB", (40, 40), colour)
        ImageDraw.Draw(image).ellipse((5, 5, 20 + number, 20 + number), fill="white")
        image.save(folder / f"{number}.png")
    return folder


def run(tiny_params: Path, folder: Path, out: Path, *more: str) -> int:
    call = ["personalize", str(folder), "--params", str(tiny_params), "--profile", "tiny", "--class", "mug"]
    return main([*call, "--out", str(out), *more])


@pytest.fixture
def no_work(monkeypatch):
    """Any stage fails the test."""
    monkeypatch.setattr(workflow, "run_stage", lambda name, context: pytest.fail(f"{name} begins"))


@pytest.mark.parametrize(
    "prompt",
    ["a red " * 40 + "{}", "a photo " * 38 + "of a {} mug", "日" * 90 + "{}"],
    ids=["tail", "cut phrase", "other letters"],
)
def test_a_prompt_beyond_the_token_limit_is_refused_before_the_work(tiny_params, tmp_path, capsys, no_work, prompt):
    photos = photos_in(tmp_path / "mug", "red")
    assert run(tiny_params, photos, tmp_path / "out", "--prompt", "a {}", "--prompt", prompt) == 1
    error = capsys.readouterr().err
    assert "not among the first" in error and "shorten the prompt" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": {"steps": 600}}, r"sample.configs.base.steps: 600 steps are not possible"),
        ({"sample": {"steps": 1000}}, r"1000 steps are not possible"),
        ({"base": {"rare_token": "sksksksks-qqqqq"}}, r"rare_token 'sksksksks-qqqqq' is \d+ tokens"),
        ({"train": {"lr": float("nan")}}, r"tiny.train.lr"),
        ({"sample": {"cfg_scale": float("inf")}}, r"tiny.sample.cfg_scale"),
        ({"runtime": {"device": "banana"}}, r"tiny.runtime.device"),
    ],
)
def test_settings_are_checked_before_the_work(tiny_params, tmp_path, capsys, no_work, change, message):
    settings = yaml.safe_load(tiny_params.read_text())
    for section, values in change.items():
        settings["tiny"][section] |= values
    tiny_params.write_text(yaml.safe_dump(settings))
    assert run(tiny_params, photos_in(tmp_path / "mug", "red"), tmp_path / "out") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_for_a_later_stage_is_reported_before_the_first(
    tiny_params, tmp_path, capsys, no_work, monkeypatch
):
    def too_small(stage, *rest):
        if stage == "sample":
            raise PersresError("sample: 0.00 GB free")

    monkeypatch.setattr(workflow, "check_disk", too_small)
    assert run(tiny_params, photos_in(tmp_path / "mug", "red"), tmp_path / "out") == 1
    assert "sample: 0.00 GB free" in capsys.readouterr().err


def test_the_trained_residual_is_there_when_sampling_fails_and_other_photos_never_replace_it(
    tiny_params, tmp_path, capsys, monkeypatch
):
    photos, out, stages = photos_in(tmp_path / "mug", "red"), tmp_path / "out", workflow.run_stage

    def fails(name, context):
        if name == "sample":
            raise PersresError("sample: no space left")
        stages(name, context)

    with monkeypatch.context() as patched:
        patched.setattr(workflow, "run_stage", fails)
        assert run(tiny_params, photos, out, "--prompt", "a {}") == 1
    error = capsys.readouterr().err
    assert "sample: no space left" in error and f"the residual is finished: {out}/mug.safetensors" in error
    assert sorted(path.name for path in out.iterdir()) == [".run", "README.md", "mug.safetensors"]
    residual = (out / "mug.safetensors").read_bytes()
    other = photos_in(tmp_path / "elsewhere", "blue")
    for folder, name in ((other, "mug"), (other, "elsewhere"), (photos, "cup")):
        assert run(tiny_params, folder, out, "--name", name) == 1
        assert "has the results of mug" in capsys.readouterr().err
    assert run(tiny_params, photos, tmp_path / "out" / "." / ".." / "out", "--prompt", "a {}") == 0
    assert "train: 1 units, 1 already done" in capsys.readouterr().err
    assert (out / "mug.safetensors").read_bytes() == residual and (out / "mug.png").is_file()
    assert run(tiny_params, out, tmp_path / "new") == 1
    assert "give the folder that has the photos alone" in capsys.readouterr().err


def test_names_that_differ_in_other_letters_do_not_share_a_folder(tiny_params, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "run_stage", lambda name, context: (_ for _ in ()).throw(PersresError("stop here")))
    call = ["--params", str(tiny_params), "--profile", "tiny", "--class", "mug"]
    results = []
    for folder, colour in (("Hündin", "red"), ("Händin", "blue"), ("H€ndin", "green")):
        assert main(["personalize", str(photos_in(tmp_path / folder, colour)), *call]) == 1
        results.append(capsys.readouterr().err)
    assert "stop here" in results[0]
    assert all("has the results of H_ndin" in error and "--name" in error for error in results[1:])
