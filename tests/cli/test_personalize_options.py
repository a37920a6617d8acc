"""personalize: options of a call, previews, single images, the sheet, facts for scripts, and advice before the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from persres.cli.main import main
from persres.config.previews import Previews
from persres.errors import PersresError
from persres.methods.common.registry import load_profile
from persres.personal.options import Options, checked_options, derive, read_prompts, with_previews
from persres.personal.results import RunFolder
from persres.personalization import check_output_folder, class_line, crop_line, outside_mini_world
from persres.report.personal_sheet import laid_over, loss_curve
from persres.residuals.file import load_residual
from persres.stages.jobs import job_type
from persres.units.context import Context


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "mug"
    folder.mkdir()
    for number, size in enumerate([(90, 60), (60, 90), (64, 64)]):
        image = Image.effect_noise(size, 60 + number).convert("RGB")
        image.save(folder / f"{number}.png")
    return folder


def test_every_option_reaches_the_training_the_images_and_the_output(tiny_params, photos, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("# scenes\na {} at sea\n\n  a {} on grass  \n")
    call = ["personalize", str(photos), "--params", str(tiny_params), "--profile", "tiny", "--class", "mug"]
    call += ["--steps", "4", "--seed", "3", "--rank", "2", "--lr", "0.01", "--dtype", "float32", "--device", "cpu"]
    call += [
        "--count",
        "2",
        "--prompt",
        "a {} at night",
        "--prompts-file",
        str(tmp_path / "prompts.txt"),
        "--crop",
        "bucket",
    ]
    out = tmp_path / "out"
    assert main([*call, "--preview-every", "2", "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    residual = load_residual(Path(result["residual"]))
    settings = residual.header.info["spec"]["settings"]
    assert {key: settings[key] for key in ("steps", "seed", "rank", "lr", "crop")} == {
        "steps": 4, "seed": 3, "rank": 2, "lr": 0.01, "crop": "bucket"
    }  # fmt: skip
    assert result["name"] == "mug" and result["macro_class"] == "mug" and result["confidence"] is None
    assert len(result["losses"]) == 4 and len(result["images"]) == 3 * 3 * 2
    assert all(Image.open(path).size == (32, 32) for path in [*result["images"], *result["previews"]])
    assert [Path(path).name for path in result["previews"]] == ["mug_step_0002.png", "mug_step_0004.png"]
    assert captured.err.count("preview after ") == 2 and "class mug, as given" in captured.err
    readme = (out / "README.md").read_text()
    assert "| 01 | `a {} at sea` |" in readme and "| 02 | `a {} on grass` |" in readme
    sheet = Image.open(result["sheet"])
    assert sheet.width == 6 * 168 + 8, "base, ours, ours with LAG, its masks, two previews"
    other = tmp_path / "other"
    assert main([*call, "--preview-every", "0", "--out", str(other)]) == 0
    assert (other / "mug.safetensors").read_bytes() == (out / "mug.safetensors").read_bytes(), "previews change nothing"
    assert not (other / "previews").exists()
    capsys.readouterr()
    (out / "images" / "a_mug_at_sea_0123abcd_0_000.png").write_bytes(b"of persres generate, called here")
    assert main([*call[:-1], "pad", "--count", "1", "--preview-every", "3", "--out", str(out)]) == 0, (
        "another training in the same folder"
    )
    assert [path.name for path in (out / "previews").iterdir()] == ["mug_step_0003.png"], "the old ones are gone"
    left = sorted(path.name for path in (out / "images").iterdir())
    assert len(left) == 1 + 3 * 3 and left[0].startswith("a_mug_at_sea"), "another program's stay, the second images go"


def test_a_preview_that_fails_costs_no_training(tiny_params, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    call = ["personalize", str(photos), "--params", str(tiny_params), "--profile", "tiny", "--class", "mug"]
    (tmp_path / "elsewhere").write_text("a file")
    (out / ".run").mkdir()
    (out / ".run" / "inputs.json").write_text("{}")
    assert main([*call, "--out", str(out)]) == 1, "a broken record"
    (out / ".run" / "inputs.json").unlink()
    import persres.training.previews as previews

    def fails(*arguments):
        raise RuntimeError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "sample_batch", fails)
        assert main([*call, "--out", str(out), "--preview-every", "1", "--prompt", "a {}"]) == 0
    assert capsys.readouterr().err.count("no more previews, training goes on: out of memory") == 1
    assert (out / "mug.safetensors").exists() and not (out / "previews").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps '0'|--steps 0"),
        ({"steps": 1.5}, "--steps 1.5"),
        ({"rank": -1}, "--rank -1"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"crop": "oval"}, "--crop 'oval'"),
        ({"dtype": "int8"}, "--dtype 'int8'"),
        ({"device": "cpu; rm"}, "--device 'cpu; rm'"),
        ({"model": ""}, "--model ''"),
        ({"model": "a\x1bb"}, "--model"),
        ({"count": 0}, "--count 0"),
        ({"seed": 2**70}, "--seed"),
        ({"preview_every": -1}, "--preview-every -1"),
        ({"stepz": 3}, "--stepz"),
    ],
)
def test_wrong_options_of_the_library_are_one_sentence(values, message):
    with pytest.raises(PersresError, match=message):
        checked_options(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompt"),
        (b"\n# only a comment\n", "has no prompt"),
        (b"a {} at sea\nno place\n", "line 2: .*exactly once"),
        (b"a {} and {}\n", "line 1: .*exactly once"),
        (b"a {}\x1b[2J\n", "line 1: .*no text"),
        (b"\xff\xfe{}\n", "no UTF-8"),
        (b"a {}\n" * 1001, "1001 prompts"),
    ],
)
def test_a_wrong_file_of_prompts_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(PersresError, match=f"p.txt.*{message}"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(PersresError, match="no file"):
        read_prompts(tmp_path)


def test_prompts_of_windows_are_read(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa {} at sea\r\n\r\na {} on grass")
    assert read_prompts(tmp_path / "p.txt") == ("a {} at sea", "a {} on grass")


def test_another_model_brings_its_resolution(repo, tiny_pipeline, tmp_path):
    mini = load_profile(repo / "params.yaml", "mini")
    derived = derive(mini, "dog", tmp_path, False, Options(model=str(tiny_pipeline)))
    assert derived.base.model == str(tiny_pipeline) and derived.base.resolution == 32 != mini.base.resolution
    assert derive(mini, "dog", tmp_path, False, Options(model=mini.base.model)).base == mini.base
    with pytest.raises(PersresError, match="cannot load the base model"):
        derive(mini, "dog", tmp_path, False, Options(model=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("macro_class", "prompts", "words"),
    [
        ("mug", ("a photo of a {} on the beach",), None),
        ("red mug", (), None),
        ("dog", (), "class 'dog' is outside the mini world"),
        ("teapot", (), "class 'teapot' is outside"),
        ("Dog", ("a {} on the moon",), "never seen: on, moon|never seen: moon"),
        (None, ("an oil painting of a {}",), "never seen: oil"),
        (None, (), None),
    ],
)
def test_what_the_mini_world_has_never_seen_is_warned_of(repo, macro_class, prompts, words):
    import re

    warned = outside_mini_world(load_profile(repo / "params.yaml", "mini"), macro_class, prompts)
    assert (warned is None) == (words is None) and (words is None or re.search(words, warned))
    assert outside_mini_world(load_profile(repo / "params.yaml", "photos"), macro_class, prompts) is None


def test_the_crop_of_the_photos_is_reported(repo, photos):
    mini, files = load_profile(repo / "params.yaml", "mini"), sorted(photos.iterdir())
    line = crop_line(files, mini)
    assert "crop center: 2 of 3 photos lose up to 33%" in line and "90×60" in line and "--crop bucket" in line
    for crop in ("pad", "bucket"):
        assert crop_line(files, derive(mini, "mug", photos, False, Options(crop=crop))) is None
    Image.effect_noise((400, 40), 60).save(photos / "9.png")
    line = crop_line(sorted(photos.iterdir()), derive(mini, "mug", photos, False, Options(crop="bucket")))
    assert "1 of 4 photos lose up to 80%" in line and "--crop pad" not in line


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"zero_shot_top": [["fish", 0.78], ["teapot", 0.2]], "confidence": 0.78},
            "class fish, predicted, 78%; wrong? --class teapot",
        ),
        ({"zero_shot_top": [["fish", 1.0]], "confidence": 1.0}, "class fish, predicted, 100%; wrong? --class CLASS"),
    ],
)
def test_a_predicted_class_can_be_corrected(tmp_path, entry, line):
    (tmp_path / "macro_class").mkdir()
    path = tmp_path / "macro_class" / "macro_class.json"
    path.write_text(json.dumps({"concepts": {"mug": entry | {"selected": "fish"}}}))
    run = RunFolder(Context(None, tmp_path), "mug", tmp_path, True)
    assert class_line(run, given=False) == line and class_line(run, given=True) == "class fish, as given"


def test_masks_are_laid_over_the_image():
    image, mask = Image.new("RGB", (8, 8), (100, 200, 50)), Image.new("L", (2, 2))
    mask.paste(255, (0, 0, 1, 2))
    both = laid_over(image, mask)
    assert both.getpixel((0, 4)) == (100, 200, 50) and both.getpixel((7, 4)) == (30, 60, 15)


@pytest.mark.parametrize("losses", [[], [0.5], [0.5, 0.5], [3.0, 1.0, 0.5, 0.4] * 20])
def test_a_loss_curve_of_any_length(losses):
    image = loss_curve(losses, 160)
    colours = {colour for _, colour in image.getcolors(100_000)}
    assert image.size == (160, 160) and ((70, 130, 180) in colours) == bool(losses)


@pytest.mark.parametrize("place", ["images", "previews", "images/ours_lag_00_000.png", "previews/mug_step_0050.png"])
def test_files_of_others_in_the_way_are_refused(tmp_path, photos, place):
    path = tmp_path / "out" / place
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(PersresError, match=rf"has a file {place}"):
        check_output_folder(tmp_path / "out", photos, "mug")


@pytest.mark.parametrize("place", ["images/holiday.png", "previews/dog_step_0050.png", "previews/mug_step_x.png"])
def test_other_files_next_to_the_images_are_fine(tmp_path, photos, place):
    path = tmp_path / "out" / place
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    check_output_folder(tmp_path / "out", photos, "mug")


def test_a_job_with_previews_can_be_sent_to_another_machine(repo, tmp_path):
    """A fleet's shard holds the options as JSON."""
    mini = load_profile(repo / "params.yaml", "mini")
    previews = with_previews(mini, Options(), "a {}", tmp_path).runtime.previews
    job = job_type("train").job([], previews=previews.model_dump())
    assert Previews(**json.loads(json.dumps(job.options))["previews"]) == previews
    assert "previews" not in job_type("train").job([]).options
