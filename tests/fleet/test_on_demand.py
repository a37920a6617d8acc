"""Personalization on demand: requests that share a worker share nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.fleet import on_demand
from persres.fleet.on_demand import RESULTS, Request, personalize_from_store


@pytest.fixture
def request_of(tmp_path):
    """A request for the photos of a folder."""

    def make(place: str = "photos", **changes) -> Request:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(f"{place}{number}".encode())
        return replace(Request(str(folder), str(tmp_path / "to"), "mug", "mug", profile="mini"), **changes)

    return make


@pytest.fixture
def runs(monkeypatch):
    """Takes the place of personalize: writes its results and what it works with, and records where it ran. ``fails``: errors to raise."""
    made: list[tuple[Path, list[str]]] = []
    made_by = type("Runs", (list,), {"fails": []})(made)

    def personalize(photos, name, out, **options):
        made_by.append((out, sorted(path.read_bytes().decode() for path in photos.iterdir())))
        (out / ".run").mkdir(parents=True, exist_ok=True)
        for pattern in RESULTS[: 1 if made_by.fails else None]:
            (out / pattern.format(name)).write_text(f"{photos} {options}")
        for stray in ("notes.txt", ".inputs.json", "other.safetensors", ".run/photo.png"):
            (out / stray).write_text("not a result")
        if made_by.fails:
            raise made_by.fails.pop()
        return out

    monkeypatch.setattr(on_demand, "personalize", personalize)
    return made_by


def uploaded(tmp_path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*") if path.is_file())


def test_single_images_and_previews_go_up_too(tmp_path, request_of, monkeypatch):
    def personalize(photos, name, out, **options):
        for file in ("images/ours_00_000.png", "previews/mug_step_0050.png", "images/.x.partial", "images/notes.txt"):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_text("x")

    monkeypatch.setattr(on_demand, "personalize", personalize)
    keys = personalize_from_store(request_of(), tmp_path / "work")
    assert keys == uploaded(tmp_path) == ["mug/images/ours_00_000.png", "mug/previews/mug_step_0050.png"]


def test_only_the_files_that_were_made_go_up_and_nothing_stays(tmp_path, request_of, runs):
    keys = personalize_from_store(request_of(), tmp_path / "work")
    assert keys == uploaded(tmp_path) == ["mug/README.md", "mug/mug.png", "mug/mug.safetensors"]
    assert not [
        path for path in (tmp_path / "work").rglob("*") if path.suffix not in (".lock", ".pid") and path.is_file()
    ]


def test_requests_of_one_name_have_separate_folders(tmp_path, request_of, runs):
    """Each fails at its end, so that its folder stays as a left-over for the next."""
    requests = [
        request_of(), request_of("others"), request_of(prompts=("a {}",)), request_of(macro_class="cup"), request_of(to=str(tmp_path / "b")),
    ]  # fmt: skip
    for request in requests:
        runs.fails.append(PersresError("the disk is full"))
        with pytest.raises(PersresError, match="the disk is full"):
            personalize_from_store(request, tmp_path / "work")
    assert len({out for out, _ in runs}) == len({out.parent for out, _ in runs}) == len(requests)
    assert [photos[0] for _, photos in runs] == ["photos0", "others0", "photos0", "photos0", "photos0"]


@pytest.mark.parametrize("place", ["photos/mug", "personal/mug", "photos", "personal"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_stray_file_blocks_no_name_and_is_nobodys_result(tmp_path, request_of, runs, place, kind):
    path = tmp_path / "work" / place
    path.parent.mkdir(parents=True)
    if kind == "file":
        path.write_text("stray")
    elif kind == "folder":
        path.mkdir()
        (path / "mug.safetensors").write_text("another's")
    else:
        path.symlink_to(tmp_path)
    assert personalize_from_store(request_of(), tmp_path / "work") == uploaded(tmp_path)
    assert runs[0][1] == ["photos0", "photos1", "photos2"]
    assert "another's" not in (tmp_path / "to" / "mug" / "mug.safetensors").read_text() and path.exists()


def test_a_failed_run_continues_and_delivers_what_is_finished(tmp_path, request_of, runs):
    runs.fails.append(PersresError("the sheet cannot be made"))
    with pytest.raises(PersresError, match="the sheet cannot"):
        personalize_from_store(request_of(), tmp_path / "work")
    assert uploaded(tmp_path) == ["mug/mug.safetensors"]
    personalize_from_store(request_of(), tmp_path / "work")
    assert runs[0][0] == runs[1][0], "the folder with the checkpoints"


def test_other_photos_at_the_same_address_are_another_run(tmp_path, request_of, runs):
    for text in ("first", "second"):
        request = request_of()
        (tmp_path / "photos" / "3.jpg").write_text(text)
        runs.fails.append(PersresError("stopped"))
        with pytest.raises(PersresError, match="stopped"):
            personalize_from_store(request, tmp_path / "work")
    (tmp_path / "photos" / "3.jpg").unlink()
    personalize_from_store(request_of(), tmp_path / "work")
    assert len({out for out, _ in runs}) == 3
    assert [len(photos) for _, photos in runs] == [4, 4, 3], "a photo that was removed is gone"


def test_photos_are_the_files_of_the_folder_alone(tmp_path, request_of, runs):
    request, folder = request_of(), tmp_path / "photos"
    (folder / "inner").mkdir()
    (folder / "inner" / "4.jpg").write_text("inner")
    (folder / ".hidden.jpg").write_text("hidden")
    (folder / ("x" * 251 + ".jpg")).write_text("a long name")
    personalize_from_store(request, tmp_path / "work")
    assert runs[0][1] == ["a long name", "photos0", "photos1", "photos2"]


@pytest.mark.parametrize("name", ["a\nb.jpg", "\x1b[2J.jpg", "b\udcff.jpg"])
def test_a_photo_without_a_usable_name_is_one_sentence(tmp_path, request_of, runs, name):
    request = request_of()
    (tmp_path / "photos" / name).write_text("photo")
    with pytest.raises(PersresError, match=r"the photo's name .* rename it") as error:
        personalize_from_store(request, tmp_path / "work")
    assert str(error.value).isprintable() and not runs and not (tmp_path / "to").exists()


def test_a_bucket_is_no_folder_of_photos(tmp_path, request_of, runs, monkeypatch):
    monkeypatch.setattr(on_demand, "MOST_KEYS", 2)
    with pytest.raises(PersresError, match="more than 2 files; pass the folder"):
        personalize_from_store(request_of(), tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PersresError, match="has no files; upload"):
        personalize_from_store(replace(request_of(), photos=str(tmp_path / "empty")), tmp_path / "work")
    assert not runs


@pytest.mark.parametrize("name", ["mug\n", "-x", "a.b", "é", "a b", "x" * 65, "a/b", "\x1b[2J"])
def test_a_request_without_a_usable_name_begins_nothing(tmp_path, request_of, runs, name):
    with pytest.raises(PersresError, match=r"concept name .* is not usable"):
        personalize_from_store(request_of(name=name), tmp_path / "work")
    assert not runs and not (tmp_path / "work").exists()
