"""Scores against plain arithmetic, summaries against plain loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import ttest_1samp

from persres.config.schema import Clip, Dino
from persres.errors import PersresError
from persres.metrics.background import background_difference
from persres.metrics.clip_scores import ClipEncoder, alignment, clip_text_score
from persres.metrics.dino_scores import DinoEncoder
from persres.metrics.object_crops import GREY, object_alignment, object_crops
from persres.metrics.summary import bootstrap_interval, config_table, detectable_difference, difference, sign_flip_p
from persres.miniworld.attribute_classifier import Prediction, matches_prompt, requested_attributes
from persres.report.tables import paper_table


def unit_rows(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_clip_text_is_two_and_a_half_times_the_positive_cosine():
    images, texts = unit_rows(5, 0), unit_rows(5, 1)
    for i, value in enumerate(clip_text_score(images, texts).tolist()):
        cosine = sum(float(a) * float(b) for a, b in zip(images[i], texts[i], strict=True))
        assert value == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)


def test_alignment_is_the_mean_over_all_pairs():
    images, references = unit_rows(4, 0), unit_rows(3, 1)
    pairs = [float(F.cosine_similarity(i, r, dim=0)) for i in images for r in references]
    assert float(alignment(images, references).mean()) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_macro_average_weighs_concepts_equally():
    rows = pd.DataFrame({"config": "m", "concept": ["a"] * 9 + ["b"], "s": [0.0] * 9 + [1.0]})
    assert config_table(rows, ["s"], 200, 0)["s"][0] == 0.5


def test_bootstrap_interval_covers_and_is_seeded():
    values = np.random.default_rng(0).normal(3, 1, 40)
    low, high = bootstrap_interval(values, 4000, 1)
    assert (low, high) == bootstrap_interval(values, 4000, 1)
    half = 1.96 * values.std() / np.sqrt(40)
    assert low == pytest.approx(values.mean() - half, abs=0.08)
    assert high == pytest.approx(values.mean() + half, abs=0.08)
    assert np.isnan(bootstrap_interval(values[:1], 100, 0)).all()


def test_bootstrap_interval_is_the_percentile_one():
    """Of skewed values, where other kinds of bootstrap give other intervals."""
    values = np.random.default_rng(0).exponential(1.0, 12) ** 2
    draw = np.random.default_rng(5)
    means = [draw.choice(values, len(values)).mean() for _ in range(20_000)]
    np.testing.assert_allclose(bootstrap_interval(values, 20_000, 1), np.percentile(means, [2.5, 97.5]), rtol=0.03)


def test_paired_difference_uses_shared_concepts_only():
    concepts = ["u", "v", "w", "x", "y"]
    one = pd.DataFrame({"config": "a", "concept": concepts, "s": [1.0, 2.0, 1.0, 2.0, 1.5]})
    two = pd.DataFrame({"config": "b", "concept": [*concepts, "z"], "s": [0.5, 1.0, 0.5, 1.0, 0.75, 99.0]})
    row = difference(pd.concat([one, two]), ["s"], ("a", "b"), 200, 0)
    assert row["concepts"] == 5
    assert row["s"] == pytest.approx(0.75)
    assert 0.5 <= row["s_low"] < 0.75 < row["s_high"] <= 1.0
    assert row["s_p"] == pytest.approx(2 / 32)


def test_below_five_concepts_there_is_no_interval_and_no_p():
    rows = pd.DataFrame(
        {"config": ["a"] * 4 + ["b"] * 4, "concept": list("uvwx") * 2, "s": [1.0] * 4 + [0.0, 0.5, 0, 0]}
    )
    row = difference(rows, ["s"], ("a", "b"), 200, 0)
    assert row["s"] == pytest.approx(0.875) and np.isnan([row["s_low"], row["s_high"], row["s_p"]]).all()


def test_the_detectable_difference_is_detected_four_times_in_five():
    """By the test of scipy, on normal differences whose mean is what the formula says of their true spread."""
    rng, spread, n = np.random.default_rng(0), 0.05, 10
    given = rng.normal(0, 1, n)
    given = spread * (given - given.mean()) / given.std(ddof=1)  # of exactly this spread
    shift = detectable_difference(given)
    hits = [ttest_1samp(rng.normal(shift, spread, n), 0).pvalue < 0.05 for _ in range(3000)]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(2 * given) == pytest.approx(2 * shift)
    assert np.isnan(detectable_difference(given[:4]))


def test_background_change_counts_only_outside_both_objects():
    base = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    ours = base.copy()
    ours[0, 0, 0] = 255  # inside the object of ours
    ours[0, 1, 1] = 255  # inside the object of the base's image
    ours[0, 3, 3] = 255  # outside
    objects, base_objects = np.zeros((2, 1, 4, 4), dtype=bool)
    objects[0, 0, 0] = base_objects[0, 1, 1] = True
    assert background_difference(ours, base, objects, base_objects)[0] == pytest.approx(1 / 14)
    assert np.isnan(background_difference(ours, base, np.ones_like(objects), base_objects)[0])


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.BICUBIC)


@pytest.mark.parametrize("size", [(80, 80), (120, 90), (90, 130)])
def test_preprocessing_equals_plain_pillow_and_numpy(tiny_encoders, size):
    image = photo(*size)
    short = min(size)
    resized = image.resize((int(size[0] * 64 / short), int(size[1] * 64 / short)), Image.BICUBIC)
    left, top = round((resized.width - 64) / 2), round((resized.height - 64) / 2)
    plain = (np.asarray(resized.crop((left, top, left + 64, top + 64)), dtype=np.float32) / 255 - 0.5) / 0.5
    for encoder in (
        ClipEncoder(Clip(**tiny_encoders["clip"]), "cpu"),
        DinoEncoder(Dino(**tiny_encoders["dino"]), "cpu"),
    ):
        np.testing.assert_allclose(encoder.preprocess(image).permute(1, 2, 0).numpy(), plain, atol=1e-5)


def test_features_do_not_depend_on_the_batch(tiny_encoders):
    images = [photo(64 + 8 * i, 64) for i in range(5)]
    for encoder in (
        ClipEncoder(Clip(**tiny_encoders["clip"]), "cpu"),
        DinoEncoder(Dino(**tiny_encoders["dino"]), "cpu"),
    ):
        whole = encoder.images(images)
        torch.testing.assert_close(encoder.images(images, batch=2), whole, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [(ClipEncoder, Clip(model="local-dir:/nowhere", pretrained=None)), (DinoEncoder, Dino(model="local-dir:/nowhere"))],
)
def test_a_missing_encoder_is_one_clear_error(encoder, settings):
    with pytest.raises(PersresError, match="cannot load"):
        encoder(settings, "cpu")


def test_object_crops_contain_the_object_only():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[:, 2:5, 3:6] = True
    for image, alone, mask in zip(images, object_crops(images, masks), masks, strict=True):
        alone = np.asarray(alone)
        assert (alone[mask] == image[mask]).all() and (alone[~mask] == GREY).all()


def test_object_alignment_is_zero_for_an_image_without_an_object():
    features = torch.nn.functional.normalize(torch.randn(2, 5), dim=1)
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, :4] = True
    actual = object_alignment(features, features, masks)
    assert actual[0] == pytest.approx(float((features[0] @ features.T).mean()))
    assert actual[1] == 0.0


def test_the_attributes_that_a_prompt_requests():
    assert requested_attributes("a photo of a {} in the snow") == {"background": "snow"}
    assert requested_attributes("a photo of a {} next to a red ball") == {"second": "present"}
    assert requested_attributes("pixel art of a {} on the beach") == {"style": "pixel", "background": "beach"}
    assert requested_attributes("a photo of a yellow {} under the night sky") == {
        "colour": "yellow",
        "background": "night",
    }
    assert requested_attributes("a photo of a striped {}") == {}
    verdict = Prediction(
        [{"background": "snow", "colour": "red", "style": "photo", "second": "absent"}] * 3, np.zeros((3, 2, 2))
    )
    shares = matches_prompt(
        verdict, ["a photo of a {} in the snow", "a photo of a red {} on the beach", "a photo of a striped {}"]
    )
    assert shares[:2].tolist() == [1.0, 0.5] and np.isnan(shares[2])


def test_the_sign_flip_test_is_exact_for_few_and_random_for_many():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 100, 0) == pytest.approx(2 / 32)
    assert sign_flip_p(np.array([1.0, -1.0, 2.0, -2.0, 0.0, 0.0]), 100, 0) == 1.0
    draw = np.random.default_rng(0)
    assert sign_flip_p(draw.normal(1.0, 1.0, 30), 2000, 0) < 0.01
    assert sign_flip_p(draw.normal(0.0, 1.0, 30), 2000, 0) > 0.05


def test_a_paper_table_has_its_rows_and_the_papers_figures_on_the_papers_model():
    table = pd.DataFrame({"config": ["a", "b", "c"], "clip_text": [1.0, 2.0, 3.0]})
    mini = paper_table(table, "table3", {"c": "Ours", "a": "KV weights"}, "elsewhere")
    assert list(mini["config"]) == ["c", "a"] and list(mini["row"]) == ["Ours", "KV weights"]
    assert not [column for column in mini if column.startswith("paper")]
    real = paper_table(table, "table3", {"c": "Ours", "a": "not in it"}, "CompVis/stable-diffusion-v1-4")
    assert real["paper dino"][0] == 0.5671 and np.isnan(real["paper dino"][1])
