"""Photos as users have them, and folders as users make them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from persres.config.schema import Base
from persres.datasets.layout import Concept, check_name, read_concept, read_concepts, spread_prompts
from persres.datasets.photos import copy_concept, find_photos
from persres.errors import PersresError
from persres.images import (
    decoded_photos,
    list_photos,
    load_photo,
    square,
    to_images,
    to_tensor,
    unzip_bytes,
    unzip_images,
    zip_bytes,
)
from persres.methods.common.registry import load_profile
from persres.methods.common.train_units import read_training_data
from persres.methods.ours import Ours
from persres.personalization import _stage
from persres.prompts import PROMPT_GROUPS
from persres.stages.fetch import fetch
from persres.units.context import Context


def half_red(width: int = 60, height: int = 40) -> Image.Image:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "L", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    source = (
        Image.fromarray((np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16))
        if mode == "I;16"
        else half_red().convert(mode)
    )
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    source.save(path)
    photo = load_photo(path)
    assert photo.mode == "RGB" and photo.size == (60, 40)
    if mode in ("RGB", "CMYK", "P", "RGBA"):
        assert photo.getpixel((5, 20))[0] > 200 > photo.getpixel((5, 20))[2]
    if mode == "I;16":
        assert np.asarray(photo).std() > 20, "16-bit levels are scaled, not clipped to white"


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show it rotated by 90° clockwise
    half_red().save(tmp_path / "x.jpg", exif=exif, quality=95)
    photo = load_photo(tmp_path / "x.jpg")
    assert photo.size == (40, 60)
    assert photo.getpixel((20, 5))[0] > 200, "what was left is now on top"


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert load_photo(tmp_path / "x.png").getpixel((3, 3)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "x.png", transparency=0)
    assert load_photo(tmp_path / "x.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "pixel"])
def test_a_broken_photo_is_one_clear_error(tmp_path, kind):
    path = tmp_path / "x.png"
    buffer = io.BytesIO()
    half_red().save(buffer, "PNG")
    if kind == "pixel":
        Image.new("RGB", (1, 1)).save(path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": buffer.getvalue()[:90]}[kind])
    with pytest.raises(PersresError, match=r"x\.png.*replace or remove"):
        load_photo(path)


def test_no_folder_and_no_photos(tmp_path):
    with pytest.raises(PersresError, match="no folder"):
        list_photos(tmp_path / "none")
    with pytest.raises(PersresError, match="no photos"):
        list_photos(tmp_path)


def test_square_and_tensors_round_trip():
    photo = square(half_red(), 32)
    assert photo.size == (32, 32)
    (back,) = to_images(to_tensor([photo]))
    assert np.array_equal(np.asarray(back), np.asarray(photo))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_of_nan_or_infinity_is_no_image(value):
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[1, 2, 0, 3] = value
    with pytest.raises(PersresError, match="NaN or infinity"):
        to_images(pixels)


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "a b", "-x", "a\\b", "ü", "x" * 65, ".hidden"])
def test_names_that_are_no_file_names(name):
    with pytest.raises(PersresError, match="not usable"):
        check_name(name)


def folder_context(tmp_path, **fetch_settings) -> Context:
    import yaml

    settings = {"fetch": {"dataset": "folder", "folder": str(tmp_path / "photos")} | fetch_settings}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "own", "own": settings}))
    return Context(load_profile(tmp_path / "params.yaml"), tmp_path / "data", tmp_path / "work")


def write_concept_folder(tmp_path, name: str = "mydog", described: str | None = '{"macro_class": "dog"}'):
    folder = tmp_path / "photos" / name
    folder.mkdir(parents=True)
    half_red().save(folder / "a.jpg")
    half_red().convert("CMYK").save(folder / "b.JPG")
    if described is not None:
        (folder / "concept.json").write_text(described)
    return folder


def test_a_users_folder_becomes_a_concept(tmp_path):
    write_concept_folder(tmp_path)
    where = folder_context(tmp_path)
    fetch(where)
    ((concept, folder),) = read_concepts(where.data / "concepts")
    assert (concept.name, concept.macro_class, len(concept.prompts)) == ("mydog", "dog", 8)
    assert len(list_photos(folder / "images")) == 2


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, "macro_class is missing"),
        ("{", r"not valid \(Invalid JSON"),
        ('{"macro_class": ""}', "macro_class is empty"),
        ('{"macro_class": "dog", "colour": "red"}', "unknown keys colour"),
        ('{"macro_class": "dog", "prompts": [["mood", "a {}"]]}', "prompt group"),
        ('{"macro_class": "dog", "prompts": [["style", "a dog"]]}', "exactly once"),
    ],
)
def test_a_wrong_description(tmp_path, described, message):
    write_concept_folder(tmp_path, described=described)
    where = folder_context(tmp_path)
    with pytest.raises(PersresError, match=message):
        fetch(where)
    assert not (where.data / "concepts").exists(), "nothing half-written"
    assert not where.data.exists() or not list(where.data.iterdir())


def test_one_broken_photo_stops_the_fetch_and_keeps_what_was(tmp_path):
    folder = write_concept_folder(tmp_path)
    where = folder_context(tmp_path)
    fetch(where)
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(PersresError, match=r"c\.png"):
        fetch(where)
    assert read_concept(where.data / "concepts" / "mydog").macro_class == "dog"
    assert [p.name for p in where.data.iterdir()] == ["concepts"]


def test_unknown_concepts_and_folders_are_named(tmp_path):
    write_concept_folder(tmp_path)
    with pytest.raises(PersresError, match="theircat"):
        fetch(folder_context(tmp_path, concepts=["theircat"]))
    with pytest.raises(PersresError, match="not usable"):
        fetch(folder_context(tmp_path, concepts=["../photos"]))
    with pytest.raises(PersresError, match="no folder"):
        fetch(folder_context(tmp_path, folder=str(tmp_path / "nowhere")))


def test_prompts_are_spread_over_the_groups():
    prompts = tuple((g, f"{g} {i} {{}}") for g in PROMPT_GROUPS for i in range(5))
    for count in (1, 4, 6, 20, 99, None):
        selected = spread_prompts(prompts, count)
        assert len(selected) == min(count or 20, 20)
        sizes = [sum(g == group for _, g, _ in selected) for group in PROMPT_GROUPS]
        assert max(sizes) - min(sizes) <= 1
        assert all(prompts[n] == (g, t) for n, g, t in selected)


def test_image_archives_are_the_same_bytes_and_damaged_ones_are_named(tmp_path):
    files = {"b.png": b"2", "a.png": b"1"}
    assert zip_bytes(files) == zip_bytes(dict(reversed(files.items())))
    path = tmp_path / "p.zip"
    path.write_bytes(zip_bytes(files))
    assert unzip_bytes(path) == files
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(PersresError, match=r"p\.zip"):
        unzip_images(path)


def test_a_photo_is_decoded_once_and_copied_once(tmp_path, monkeypatch):
    """From personalize's check through its staging and the fetch stage to training, in one process."""
    decoded_photos.clear()
    decodes, plain_open = [], Image.open
    monkeypatch.setattr(
        "persres.images.Image.open", lambda source, *rest: decodes.append(source) or plain_open(source, *rest)
    )
    (tmp_path / "photos").mkdir()
    for number in range(3):
        half_red(60 + number).save(tmp_path / "photos" / f"{number}.png")
    photos = find_photos(tmp_path / "photos")
    for photo in photos:
        load_photo(photo)
    _stage(photos, "mug", (), "mug0", tmp_path / "staged")
    copy_concept(find_photos(tmp_path / "staged" / "mug0"), Concept("mug0", "mug", "mug", ()), tmp_path / "concepts")
    copies = list_photos(tmp_path / "concepts" / "mug0" / "images")
    refs = [SimpleNamespace(path=str(path)) for path in copies]
    base, settings = Base(resolution=32), Ours()
    spec = SimpleNamespace(
        base=base, settings=settings, photos=refs, class_images=None, concept="mug0", macro_class="mug"
    )
    assert len(read_training_data(spec).photos) == len(decodes) == 3
    files = [path for path in tmp_path.rglob("*.png") if not path.is_symlink()]
    assert len(files) == 2 * 3, "the user's files and one copy of each"


def test_decoded_photos_stay_within_their_limit(tmp_path, monkeypatch):
    decoded_photos.clear()
    monkeypatch.setattr("persres.images.CACHED_PIXELS", 2 * 60 * 40)
    for number in range(4):
        half_red().point(lambda level, number=number: max(0, level - number)).save(tmp_path / f"{number}.png")
        load_photo(tmp_path / f"{number}.png")
    assert len(decoded_photos) == 2
