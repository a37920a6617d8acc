"""Malformed options of personalize, generate, run and profile: one line, exit code 1 or 2, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from persres.cli.main import main
from persres.errors import PersresError
from persres.personalization import check_output_folder, personalize


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Two photos, in a working folder with nothing else."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        image = Image.new("RGB", (40, 40), colour)
        image.putpixel((0, 0), (1, 2, 3))
        image.save(folder / f"{number}.png")
    return folder


def refused(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and the message of a call that must fail with one clear message."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code in (1, 2) and captured.err.count("persres: ") == 1 and "Traceback" not in captured.err
    assert len(captured.err) < 1500 and captured.out == "" and "\x1b" not in captured.err
    return code, captured.err


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


PERSONALIZE = [
    ("--class", ["", " ", "a\nb", "\x1b[31mdog", "x" * 500, "../dog", "a {} dog", "\udcff"]),
    ("--name", ["", "a b", "../x", "a\n", "x" * 65, "-x", "Hündin", "\x1b"]),
    ("--prompt", ["", "no place", "{} and {}", "a {}\x1b[2J", "{}" + "x" * 6000, "\udcff {}"]),
    ("--profile", ["", "nothing", "profile", "a\nb", "\x1b"]),
    ("--params", ["", "missing.yaml", ".", "/dev/null", "photos/0.png", "a\nb"]),
    ("--out", ["", "/", "~", "photos", "photos/0.png", "/proc/x", "a\nb", "\udcff", "x" * 300, "photos/0.png/below"]),
]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in PERSONALIZE for value in values])
def test_personalize_refuses(photos, capsys, option, value, monkeypatch):
    monkeypatch.setattr("persres.personalization.check_models", lambda *arguments: None)
    monkeypatch.setattr("persres.personalization._stage", lambda *arguments: pytest.fail("work begins"))
    before = snapshot(photos.parent)
    value = os.path.expanduser(value) if option == "--out" else value
    given = {"--class": "mug", "--profile": "mini"} | {option: value}
    refused(capsys, "personalize", "photos", *(part for pair in given.items() for part in pair))
    assert snapshot(photos.parent) == before


@pytest.mark.parametrize("folder", ["", "missing", "photos/0.png", "empty", "\udcff", "x" * 300])
def test_personalize_refuses_what_is_no_folder_of_photos(photos, capsys, folder):
    (photos.parent / "empty").mkdir()
    before = snapshot(photos.parent)
    refused(capsys, "personalize", folder, "--class", "mug", "--profile", "mini")
    assert snapshot(photos.parent) == before


@pytest.mark.parametrize("name", ["犬", "写真 1", "Ω", "!!!"])
def test_a_folder_without_a_usable_name_offers_the_option(photos, capsys, name):
    folder = photos.rename(photos.parent / name)
    if name == "写真 1":
        assert "1" in name, "a digit is enough for a name"
        return
    code, message = refused(capsys, "personalize", str(folder), "--class", "mug", "--profile", "mini")
    assert code == 1 and "--name" in message


GENERATE = [
    ("--count", ["0", "-1", "many", "1e3", "1000000000", ""]),
    ("--seed", ["", "x", "1.5", str(2**63), str(-(10**30))]),
    ("--strength", ["nan", "inf", "-inf", "-1", "1e30", "x", ""]),
    ("--cfg-scale", ["nan", "inf", "0", "-1", "1e30", "x"]),
    ("--steps", ["0", "-1", "1001", "1.5", "x", str(10**20)]),
    ("--masks", ["", "x", "AUTO", "auto ", "\x1b"]),
    ("--out", ["", "a\nb", "\x1b", "\udcff", "x" * 5000]),
    ("--model", ["", " ", "a\nb", "\x1b", "\udcff"]),
    ("--device", ["", " ", "a\nb", "\x1b", "\udcff"]),
    ("--with", ["", "a\nb", "\x1b", "\udcff", "x" * 5000]),
]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in GENERATE for value in values])
def test_generate_refuses_a_wrong_call(photos, capsys, option, value):
    code, message = refused(capsys, "generate", "a.safetensors", "--prompt", "a {}", f"{option}={value}")
    assert code == 2 and option.strip("-") in message


@pytest.mark.parametrize("prompt", ["", "no place", "{} {}", "a {}\x1b[2J", "\udcff {}", "{}" * 4000])
def test_generate_refuses_a_wrong_prompt_before_it_reads_anything(photos, capsys, prompt):
    code, message = refused(capsys, "generate", "missing.safetensors", "--prompt", prompt)
    assert code == 1 and "prompt" in message


RUN = [
    ("--params", ["", "missing.yaml", "photos", "/dev/null", "photos/0.png"]),
    ("--profile", ["", "nothing", "profile", "\x1b", "a\nb"]),
    ("--data", ["", "a\nb", "\x1b", "\udcff", "x" * 5000]),
    ("--work", ["", "a\nb", "\x1b", "\udcff", "x" * 5000]),
]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in RUN for value in values])
def test_run_refuses(photos, capsys, option, value):
    before = snapshot(photos.parent)
    refused(capsys, "run", "fetch", f"{option}={value}")
    assert snapshot(photos.parent) == before


@pytest.mark.parametrize("place", ["photos/0.png", "photos/0.png/below", "x" * 300])
@pytest.mark.parametrize("option", ["--data", "--work"])
def test_run_refuses_a_folder_that_cannot_be_written(photos, capsys, option, place):
    code, message = refused(capsys, "run", "fetch", "--profile", "mini", option, place)
    assert code == 1 and "cannot write to" in message


@pytest.mark.parametrize(
    "call",
    [
        *(["link", "dog7", f"--hours={hours}"] for hours in ("nan", "inf", "0", "-1", "x")),
        *(["pull", "dog7", f"--out={out}"] for out in ("", "a\nb", "\x1b", "\udcff", "x" * 5000)),
        *(
            ["import", "a.safetensors", "--model=m", "--class=dog", f"--resolution={n}"]
            for n in ("0", "-8", "1e9", "99999", "")
        ),
    ],
)
def test_other_commands_refuse_a_wrong_call(photos, capsys, call):
    assert refused(capsys, *call)[0] == 2


FILES = {
    "plain": "profile: a\na: {fetch: {folder: x}}\nb-1: {fetch: {folder: x}}\n",
    "twice in a line": "{profile: a, a: {fetch: {folder: x}}, b-1: {fetch: {folder: x}}}\n",
}


def test_a_profile_is_selected_and_the_rest_of_the_file_stays(photos, capsys):
    Path("params.yaml").write_text(f"# note\n{FILES['plain']}")
    assert main(["profile", "b-1"]) == 0
    assert Path("params.yaml").read_text() == f"# note\n{FILES['plain']}".replace("profile: a", 'profile: "b-1"')


@pytest.mark.parametrize("name", ["", "c", "profile", "\\1", "a: b"])
def test_a_profile_that_is_not_there_changes_nothing(photos, capsys, name):
    Path("params.yaml").write_text(FILES["plain"])
    refused(capsys, "profile", name)
    assert Path("params.yaml").read_text() == FILES["plain"]


def test_a_file_whose_profile_has_no_line_stays_as_it_is(photos, capsys):
    Path("params.yaml").write_text(FILES["twice in a line"])
    assert "no line of its own" in refused(capsys, "profile", "b-1")[1]
    assert Path("params.yaml").read_text() == FILES["twice in a line"]


@pytest.mark.parametrize(
    "place",
    [
        "photos",
        "photos/.",
        "link to photos",
        "home",
        "link to home",
        "above home",
        "foreign README",
        "foreign residual",
        "file",
    ],
)
def test_an_output_folder_in_the_way_of_other_files_is_refused(photos, monkeypatch, place):
    root = photos.parent
    home, other = root / "homes" / "ada", root / "other"
    for folder in (home, other):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (other / ("README.md" if place == "foreign README" else "dog.safetensors")).write_text("mine")
    (root / "link").symlink_to(photos if place == "link to photos" else home)
    folder = {
        "photos": photos,
        "photos/.": photos / ".",
        "home": home,
        "above home": root / "homes",
        "foreign README": other,
        "foreign residual": other,
        "file": photos / "0.png",
    }.get(place, root / "link")
    with pytest.raises(PersresError, match=r"--out .*; give a folder for this object alone"):
        check_output_folder(Path(os.path.realpath(folder)), photos, "dog")


@pytest.mark.parametrize("place", ["new", "photos/personal/dog", "photos/..", "empty"])
def test_other_output_folders_are_fine(photos, place):
    (photos.parent / "empty").mkdir()
    check_output_folder(Path(os.path.realpath(photos.parent / place)), photos, "dog")


@pytest.mark.parametrize("out", ["a\0b", "a\x1bb", "\udcff", "x" * 6000])
def test_an_output_folder_of_the_library_is_text_too(photos, out, monkeypatch):
    monkeypatch.setattr("persres.personalization.check_models", lambda *arguments: pytest.fail("work begins"))
    with pytest.raises(PersresError, match="the output folder"):
        personalize(photos, macro_class="mug", out=out, profile="mini")
    with pytest.raises(PersresError, match="no folder"):
        personalize(f"{photos}\0", macro_class="mug", profile="mini")


@pytest.mark.parametrize("inner", ["", ".run/photos/dog", ".run/data"])
def test_results_are_no_photos(photos, inner):
    staged = photos.parent / "out" / ".run" / "photos" / "dog"
    staged.mkdir(parents=True)
    (staged / "0.png").symlink_to(photos / "0.png")
    (photos.parent / "out" / ".run" / "data").mkdir()
    with pytest.raises(PersresError, match="has results of persres personalize"):
        check_output_folder(photos.parent / "out", photos.parent / "out" / inner, "dog")
