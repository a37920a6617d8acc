"""Sentences of the studies' pages outside of the generated tables agree with the summaries."""

from __future__ import annotations

import json
import re

import pytest


@pytest.fixture
def page(repo):
    return lambda study: re.sub(
        r"\s+", " ", (repo / "docs" / "extensions" / f"{study}.md").read_text().replace("**", "")
    )


@pytest.fixture
def summary(repo):
    return lambda study: json.loads((repo / "data" / "extensions" / study / "summary.json").read_text())


def short(value: float, digits: int = 3) -> str:
    """A share as prose writes it, without the zero before the point."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def claim_of(summary: dict, name: str) -> dict:
    return next(c for c in summary["claims"] if c["claim"] == name)


def test_missing_objects_of_several_concepts(page, summary):
    result = summary("multi_concept")
    shares = (short(result["configs"][m]["missing"]["mean"]) for m in ("ours", "base", "merged", "added"))
    ours, base, merged, added = shares
    claim = claim_of(result, "missing_base")
    more, low, high = (short(0.05 - claim[key]) for key in ("effect", "high", "low"))
    text = f"{ours}, against {base} in the base model's images ({more} fewer [{low}, {high}]) and {merged} with the merge; adding both: {added}"
    assert text in page("multi_concept")


def test_halves_lie_on_the_wrong_object(page, summary):
    right = summary("multi_concept")["configs"]["halves"]["mask_accuracy"]
    text = f"(accuracy {short(right['mean'])} [{short(right['low'])}, {short(right['high'])}])"
    assert right["high"] < 0.5 and text in page("multi_concept")


def test_three_concepts_do_not_work(page, summary):
    ours, added = (summary("multi_concept")["triples"][m] for m in ("ours", "added"))
    assert f"an identity of {short(ours['worse']['mean'])}" in page("multi_concept") and ours["missing"]["mean"] > 0.5
    assert f"({short(ours['leakage']['mean'])} against {short(added['leakage']['mean'])})" in page("multi_concept")


def test_auto_against_disks_by_position(page, summary):
    result = summary("masks")
    off, centred = (result["images"][g] for g in ("off-centre", "centred"))
    assert f"{off} of the {off + centred} images without a second object" in page("masks")
    disk, auto = (result["groups"]["off-centre"][m]["dino"]["mean"] for m in ("disk_30", "auto"))
    assert abs(disk - auto) < 0.005 and f"({short(disk)} against {short(auto)})" in page("masks")
    auto, disk = (result["groups"]["second object"][m]["dino"]["mean"] for m in ("auto", "auto_disk"))
    assert f"({short(auto)} against {short(disk)})" in page("masks")


def test_what_masks_retain_and_change(page, summary):
    scores = summary("masks")["configs"]
    ours = scores["ours"]
    for name, text in (("auto", "within {} at {}"), ("ours_lag", "lose {} at {}"), ("auto_disk", "loses {}")):
        lost = short(ours["dino"]["mean"] - scores[name]["dino"]["mean"])
        share = f"{scores[name]['background_change']['mean'] / ours['background_change']['mean']:.0%}"
        assert text.format(lost, share) in page("masks"), name


def test_identity_lost_by_early_stopping(page, summary):
    result = summary("early_stopping")
    dino = claim_of(result, "identity_dino")
    lost, low, high = (short(0.015 - dino[key]) for key in ("effect", "high", "low"))
    assert f"DINO by {lost} [{low}, {high}]" in page("early_stopping")
    saved = claim_of(result, "steps_saved")
    assert f"{saved['effect']:.0%} of the computation [{saved['low']:.0%}, {saved['high']:.0%}]" in page(
        "early_stopping"
    )


def test_real_photos_without_a_class_of_imagenet(page, summary):
    record = summary("zero_shot_class")["real_photos"]
    rows = {row["subject"]: row for row in record["rows"]}
    unknown = [rows[s]["confidence"] for s in ("poop_emoji", "red_cartoon", "monster_toy", "robot_toy", "duck_toy")]
    text = page("zero_shot_class")
    assert f"a confidence of {short(min(unknown), 2)} to {short(max(unknown), 2)}" in text
    exact, branch = record["accuracy"]["exact"], record["accuracy"]["branch"]
    assert f"{exact['zero_shot']['mean']:.0%} (nearest noun {exact['nearest']['mean']:.0%})" in text
    assert f"{branch['zero_shot']['mean']:.0%} ({branch['nearest']['mean']:.0%})" in text


def test_accuracy_of_the_zero_shot_class(page, summary):
    rows = {(a["sets"], a["method"]): a["mean"] for a in summary("zero_shot_class")["accuracy"]}
    sets = "300 unseen subjects, 8 nouns"
    text = page("zero_shot_class")
    assert f"while {1 - rows[sets, 'zero_shot_1']:.0%} of such sets are named wrongly" in text
    assert f"{rows[sets, 'zero_shot_5']:.0%} of unseen subjects" in text and f"for {rows[sets, 'nearest']:.0%}." in text
