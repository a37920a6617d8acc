"""Scoring encodes each image once, caches what a concept's configs share, and gives the same bits."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from persres.config.schema import Clip, Dino
from persres.errors import PersresError
from persres.images import decoded_photos, load_photo, png_bytes, unzip_images, zip_bytes
from persres.metrics import feature_cache
from persres.metrics.background import background_difference
from persres.metrics.clip_scores import ClipEncoder, alignment, clip_text_score
from persres.metrics.dino_scores import DinoEncoder
from persres.metrics.object_crops import object_alignment, object_crops
from persres.metrics.score_units import FILE, score_unit
from persres.miniworld.attribute_classifier import classify_images, load_attribute_classifier, matches_prompt
from persres.package_paths import located
from persres.units.specs import ClassifierRef, FileRef, ImageSpec, Prompt, ScoreSpec
from persres.units.unit import Unit

TEXTS = ("a photo of a {}", "a photo of a {} in the snow")
EACH = 3  # images per prompt
METHODS = ("base", "ours", "ours_few")


def noise(seed: int) -> Image.Image:
    """A random image, 64×64, coarse enough that the classifier predicts objects."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)


def specs(each: int) -> tuple[ImageSpec, ...]:
    plain = [text.replace("{}", "mug") for text in TEXTS]
    return tuple(
        ImageSpec(name=f"{p:02d}_{i:03d}", prompt=plain[p], phrase="mug", plain=plain[p], image=i)
        for p in range(len(TEXTS))
        for i in range(each)
    )


@pytest.fixture
def units(tiny_encoders, tmp_path) -> list[Unit[ScoreSpec]]:
    """One concept by three configs, the last with fewer images; one archive has masks, as LAG writes them."""
    photos = []
    for seed in range(4):
        photos.append(tmp_path / f"{seed}.png")
        noise(seed).save(photos[-1])
    archives = {}
    for number, method in enumerate(METHODS, 1):
        images = specs(1 if method == "ours_few" else EACH)
        files = {f"{item.name}.png": png_bytes(noise(100 * number + place)) for place, item in enumerate(images)}
        masks = {f"masks/{item.name}.png": png_bytes(noise(0)) for item in images} if method == "ours" else {}
        (tmp_path / f"{method}.zip").write_bytes(zip_bytes(files | masks))
        archives[method] = FileRef.of(tmp_path / f"{method}.zip")
    classifier = ClassifierRef(
        dataset="miniworld", weights=FileRef.of(Path(located("package:miniworld/weights/judge")))
    )
    shared = {
        "clip": Clip(**tiny_encoders["clip"]),
        "dino": Dino(**tiny_encoders["dino"]),
        "models": ("c", "d"),
        "classifier": classifier,
        "concept": "mug",
        "category": "things",
        "seed": 0,
        "sample_hash": "h",
        "prompts": tuple(Prompt(number=n, group="background", text=text) for n, text in enumerate(TEXTS)),
        "references": tuple(FileRef.of(photo) for photo in photos),
        "code": "x",
    }
    return [
        Unit("score", f"{method}/mug", ScoreSpec(
            config=method, image_specs=specs(1 if method == "ours_few" else EACH), archive=archives[method],
            base_archive=None if method == "base" else archives["base"], **shared))
        for method in METHODS
    ]  # fmt: skip


def clear_caches() -> None:
    for function in (
        feature_cache.references,
        feature_cache.prompt_features,
        feature_cache.archive_images,
        feature_cache.prediction,
    ):
        function.cache_clear()


def scored(unit: Unit[ScoreSpec], work: Path, batch: int = 4) -> pd.DataFrame:
    score_unit(unit, work, "cpu", batch)
    return pd.read_parquet(unit.folder(work) / FILE)


def uncached(spec: ScoreSpec, batch: int = 4) -> dict[str, np.ndarray]:
    """Every score of a unit without caches: all files read again, one text per image."""
    clip, dino = ClipEncoder(spec.clip, "cpu"), DinoEncoder(spec.dino, "cpu")
    packed = unzip_images(Path(spec.archive.path))
    images, photos = (
        [packed[f"{i.name}.png"] for i in spec.image_specs],
        [load_photo(Path(p.path)) for p in spec.references],
    )
    features = clip.images(images, batch)
    scores = {
        "clip_text": clip_text_score(features, clip.texts([i.plain for i in spec.image_specs])).double().numpy(),
        "clip_image": alignment(features, clip.images(photos)).double().numpy(),
        "dino": alignment(dino.images(images, batch), dino.images(photos)).double().numpy(),
    }
    model = load_attribute_classifier(Path(spec.classifier.weights.path))
    sampled, reference = (np.stack([np.asarray(i) for i in many]) for many in (images, photos))
    prediction, truth = classify_images(model, sampled), classify_images(model, reference)
    alone = dino.images(object_crops(sampled, prediction.masks), batch)
    scores["dino_object"] = object_alignment(alone, dino.images(object_crops(reference, truth.masks)), prediction.masks)
    scores["followed"] = matches_prompt(prediction, [TEXTS[item.number] for item in spec.image_specs])
    if spec.base_archive is None:
        return scores | {"background_change": np.full(len(images), np.nan)}
    base = unzip_images(Path(spec.base_archive.path))
    pixels = np.stack([np.asarray(base[f"{item.name}.png"]) for item in spec.image_specs])
    return scores | {
        "background_change": background_difference(
            sampled, pixels, prediction.masks, classify_images(model, pixels).masks
        )
    }


def test_cold_warm_and_plain_scores_are_the_same_bits(units, tmp_path):
    for place, unit in enumerate(units):
        clear_caches()
        cold = scored(unit, tmp_path / f"cold{place}")
        warm = scored(unit, tmp_path / f"warm{place}")
        pd.testing.assert_frame_equal(cold, warm, check_exact=True)
        for column, values in uncached(unit.spec).items():
            np.testing.assert_array_equal(cold[column].to_numpy(), values, err_msg=f"{unit.name}: {column}")
        assert set(cold["spec_hash"]) == {unit.spec.sample_hash}
    clear_caches()
    units[0].folder(tmp_path / "shared").mkdir(parents=True)  # as a run leaves it that was killed here
    shared = [scored(unit, tmp_path / "shared") for unit in units]
    for place, rows in enumerate(shared):
        pd.testing.assert_frame_equal(
            rows, pd.read_parquet(units[place].folder(tmp_path / f"cold{place}") / FILE), check_exact=True
        )
    assert shared[1]["background_change"].notna().any(), "there is background to compare"


def test_each_image_is_decoded_once_and_each_photo_encoded_once(units, tmp_path, monkeypatch):
    """One concept's units in one process, in the stage's order."""
    clear_caches()
    decoded_photos.clear()
    decoded, looked = Counter(), Counter()
    plain_open = Image.open

    def counted(source, *rest):
        decoded[source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()] += 1
        return plain_open(source, *rest)

    monkeypatch.setattr(Image, "open", counted)
    for kind in (ClipEncoder, DinoEncoder):
        plain_images = kind.images

        def watched(self, images, batch=64, plain_images=plain_images, kind=kind):
            looked[kind.__name__] += len(images)
            return plain_images(self, images, batch)

        monkeypatch.setattr(kind, "images", watched)
    for unit in units:
        score_unit(unit, tmp_path / "work", "cpu")
    images = sum(len(unit.spec.image_specs) for unit in units)
    assert len(decoded) == images + 4, "every image and photo, and no mask"
    assert set(decoded.values()) == {1}
    assert looked == {"ClipEncoder": images + 4, "DinoEncoder": 2 * (images + 4)}, "whole, and object crops"


def test_caches_are_keyed_by_content(units, tmp_path):
    """Equal bytes at another path hit the cache; other bytes at the same path do not."""
    clear_caches()
    encoders = feature_cache.EncoderSet(units[0].spec.clip, units[0].spec.dino, units[0].spec.classifier, "cpu")
    here = [Path(photo.path) for photo in units[0].spec.references]
    first = feature_cache.references(tuple(feature_cache.Source.of(FileRef.of(path)) for path in here), encoders)
    moved = []
    for path in here:
        moved.append(tmp_path / f"moved_{path.name}")
        moved[-1].write_bytes(path.read_bytes())
    assert (
        feature_cache.references(tuple(feature_cache.Source.of(FileRef.of(path)) for path in moved), encoders) is first
    )
    noise(77).save(here[0])
    other = feature_cache.references(tuple(feature_cache.Source.of(FileRef.of(path)) for path in here), encoders)
    assert not torch.equal(other.clip[0], first.clip[0]) and not torch.equal(other.objects[0], first.objects[0])
    blind = feature_cache.references(tuple(feature_cache.Source.of(FileRef.of(path)) for path in here), feature_cache.EncoderSet(encoders.clip, encoders.dino, None, "cpu"))  # fmt: skip
    assert blind.objects is None and torch.equal(blind.dino, other.dino)


def test_without_a_classifier_an_archive_is_read_in_batches_and_not_cached(units, tmp_path, monkeypatch):
    clear_caches()
    spec = units[1].spec.model_copy(update={"classifier": None})
    happened: list[str] = []
    plain_read, plain_images = zipfile.ZipFile.read, ClipEncoder.images

    def read(self, name, *rest):
        happened.append("read")
        return plain_read(self, name, *rest)

    def looked(self, images, batch=64):
        happened.append("looked")
        return plain_images(self, images, batch)

    monkeypatch.setattr(zipfile.ZipFile, "read", read)
    monkeypatch.setattr(ClipEncoder, "images", looked)
    rows = scored(Unit("score", "ours/mug", spec), tmp_path / "blind", batch=2)
    assert happened == [*["read", "read", "looked"] * 3, "looked"], "the images two by two, then the photos"
    assert rows["dino_object"].isna().all() and feature_cache.archive_images.cache_info().currsize == 0
    for column in ("clip_text", "clip_image", "dino"):
        np.testing.assert_array_equal(rows[column].to_numpy(), uncached(units[1].spec, batch=2)[column])


def test_an_archive_without_an_image_is_one_clear_error(units, tmp_path):
    archive = Path(units[1].spec.archive.path)
    with pytest.raises(PersresError, match="sample again"):
        list(feature_cache.read_archive(archive, ["00_000", "07_000"], 4))
    archive.write_bytes(archive.read_bytes()[:-40])
    clear_caches()
    for classifier in (units[1].spec.classifier, None):
        damaged = Unit("score", "ours/mug", units[1].spec.model_copy(update={"classifier": classifier}))
        with pytest.raises(PersresError, match=r"ours\.zip is not a whole image archive"):
            score_unit(damaged, tmp_path / "work", "cpu")


@pytest.mark.parametrize(
    "content", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a" + bytes(20), png_bytes(noise(1))[:90]]
)
def test_an_archives_image_that_is_none_is_named(tmp_path, content):
    feature_cache.archive_images.cache_clear()
    path = tmp_path / "ours.zip"
    path.write_bytes(zip_bytes({"00_000.png": png_bytes(noise(1)), "00_001.png": content}))
    for read in (
        lambda: list(feature_cache.read_archive(path, ["00_000", "00_001"], 4)),
        lambda: feature_cache.archive_images(feature_cache.Source("x", path)),
    ):
        with pytest.raises(PersresError, match=r"ours\.zip: 00_001\.png is not a readable image.*sample again"):
            read()


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a\\b.png", "C:evil.png"])
def test_an_archives_names_are_checked(tmp_path, name):
    feature_cache.archive_images.cache_clear()
    path = tmp_path / "ours.zip"
    path.write_bytes(zip_bytes({"00_000.png": png_bytes(noise(1)), name: b""}))
    for read in (
        lambda: list(feature_cache.read_archive(path, ["00_000"], 4)),
        lambda: feature_cache.archive_images(feature_cache.Source("y", path)),
    ):
        with pytest.raises(PersresError, match="leads out"):
            read()
