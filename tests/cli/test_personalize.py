"""Personalization of a folder of photos: residual, sheet, and a README whose code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from persres.cli.main import main
from persres.datasets.folder import NEUTRAL_PROMPTS, describe
from persres.methods.common.registry import load_profile
from persres.models.diffusion import load_diffusion
from persres.personalization import _stage, derive
from persres.residuals.file import load_residual


@pytest.fixture
def photos(tmp_path) -> Path:
    """Typical files of a phone: portrait, landscape, rotated by EXIF, CMYK, and a file that is no photo."""
    folder = tmp_path / "My mug!"
    folder.mkdir()
    rotated = Image.Exif()
    rotated[274] = 6
    photos = [Image.new("RGB", (90, 60), "red"), Image.new("RGB", (60, 90), "blue"), Image.new("CMYK", (80, 80))]
    for photo in photos:
        photo.paste(photo.resize((9, 9)).point(lambda level: 255 - level), (5, 5))
    photos[0].save(folder / "a.JPG", "JPEG")
    photos[1].save(folder / "b.jpeg", exif=rotated)
    photos[2].save(folder / "c.jpg")
    (folder / "clip.mov").write_bytes(b"x")
    return folder


def run(tiny_params: Path, folder: Path, *more: str) -> int:
    return main(["personalize", str(folder), "--params", str(tiny_params), "--profile", "tiny", *more])


def done(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.name != ".run") if out.exists() else []


def rows(sheet: Path) -> int:
    """The number of prompt rows in a sheet of 160-pixel cells below its references."""
    below, row = Image.open(sheet).height - (30 + 160 + 8 + 20) - 8, 160 + 8 + 22
    assert below % row == 0
    return below // row


def test_photos_become_a_residual_a_sheet_and_a_readme(tiny_params, photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--class", "mug", "--out", str(out), "--prompt", "a {} on the moon", "--prompt", "a red {}"]
    assert run(tiny_params, photos, *arguments) == 0
    captured = capsys.readouterr()
    output = captured.err
    assert captured.out == f"{out}\n"
    assert done(out) == ["My_mug.png", "My_mug.safetensors", "README.md", "images"]
    assert done(out / "images") == [
        f"{config}_{prompt:02d}_000.png" for config in ("base", "ours", "ours_lag") for prompt in (0, 1)
    ]
    assert all(str(out / name) in output for name in done(out))
    assert output.count("left out clip.mov") == 1 and "only" not in output
    header = load_residual(out / "My_mug.safetensors").header
    assert header.macro_class == "mug" and len(header.info["spec"]["photos"]) == 3
    assert rows(out / "My_mug.png") == 2, "every prompt, though both are of one group"
    written = (out / "My_mug.safetensors").read_bytes()
    assert run(tiny_params, photos, *arguments) == 0
    output = capsys.readouterr().err
    assert "train: 1 units, 1 already done" in output and "sample: 3 units, 3 already done" in output
    assert (out / "My_mug.safetensors").read_bytes() == written
    readme = (out / "README.md").read_text()
    front = yaml.safe_load(readme.split("---\n")[1])
    facts = front["persres"]
    assert front["library_name"] == "diffusers" and "lora" in front["tags"] and front["license"] == "other"
    assert front["instance_prompt"] == "a photo of a <v*> mug" and facts["spec_hash"] == header.info["spec_hash"]
    assert facts["base_model_weights"] and len(facts["dataset_hash"]) == 64 and facts["photos"] == 3
    assert "unknown" in facts["photos_licence"] and "scores" not in facts, (
        "no licence was given, and nothing was scored"
    )
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "a photo of a sks mug" in code
    monkeypatch.chdir(out)
    exec(compile(code, "README.md", "exec"), {})
    assert Image.open(out / "beach.png").size == (32, 32)


def test_without_a_class_the_zero_shot_class_is_logged_with_its_confidence(tiny_params, photos, tmp_path, capsys):
    out = tmp_path / "out"
    (photos / "c.jpg").unlink()
    assert run(tiny_params, photos, "--name", "cup-1", "--out", str(out), "--prompt", "a {}") == 0
    output = capsys.readouterr().err
    assert "only 2 photo(s)" in output
    assert re.search(r"cup-1: zero-shot class (mug|robot|cat), confidence \d+%.*; then ", output), (
        "with what comes next"
    )
    macro_class = load_residual(out / "cup-1.safetensors").header.macro_class
    assert macro_class in ("mug", "robot", "cat"), "from nouns.txt"
    assert f"sks {macro_class}" in (out / "README.md").read_text()


def test_without_prompts_the_neutral_ones_are_sampled(photos, tmp_path):
    _stage([photos / "a.JPG"], "mug", (), "my_mug", tmp_path / "staged")
    concept = describe(tmp_path / "staged" / "my_mug")
    assert concept.prompts == NEUTRAL_PROMPTS and concept.macro_class == "mug"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("empty", [], "no photos in"),
        ("none", [], "no folder"),
        ("heic", [], r"a\.HEIC.*JPEG"),
        ("broken", [], r"My mug!/a\.JPG is not a readable"),
        ("", ["--prompt", "no place"], "exactly once"),
        ("", ["--name", "a b"], "not usable"),
        ("", ["--class", " "], "--class is empty"),
        ("", ["--profile", "nothing"], "no profile 'nothing'; one of tiny"),
    ],
)
def test_bad_input_is_one_clear_error(tiny_params, photos, tmp_path, capsys, change, arguments, message):
    for path in list(photos.iterdir()) if change else []:
        if change == "broken" and path.name == "a.JPG":
            path.write_bytes(b"no image")
        elif change != "broken":
            path.unlink()
    if change == "heic":
        (photos / "a.HEIC").write_bytes(b"x")
    if change == "none":
        photos.rmdir()
    out = tmp_path / "out"
    assert run(tiny_params, photos, "--class", "mug", "--out", str(out), *arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert not done(out)


def test_an_unavailable_model_is_one_clear_error(tiny_params, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it retries for 20 s
    load_diffusion.cache_clear()
    settings = yaml.safe_load(tiny_params.read_text())
    settings["tiny"]["base"]["model"] = "nobody/nothing"
    tiny_params.write_text(yaml.safe_dump(settings))
    assert run(tiny_params, photos, "--class", "mug", "--out", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "cannot load the base model 'nobody/nothing'" in error and "connect to the hub" in error
    assert not done(tmp_path / "out")


def test_the_derived_profile_has_models_and_training_of_the_original(repo, tmp_path):
    """Settings for another dataset (attribute classifier, table rows, variants) are left out."""
    mini = load_profile(repo / "params.yaml", "mini")
    derived = derive(mini, "dog", tmp_path, zero_shot=False)
    assert (derived.base, derived.encoders) == (mini.base, mini.encoders)
    assert derived.train.variant("ours") == mini.train.variant("ours")
    assert (
        derived.score.attribute_classifier is None
        and derived.fetch.dataset == "folder"
        and derived.macro_class.source == "dataset"
    )
    assert derive(mini, "dog", tmp_path, zero_shot=True).macro_class.source == "zero_shot"
    assert list(derive(load_profile(repo / "params.yaml", "tables"), "dog", tmp_path, False).train.variants) == ["ours"]
