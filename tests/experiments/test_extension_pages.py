"""Sentences of docs/beyond.md that stand outside of its written tables say what the summaries say."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def page(repo) -> str:
    return re.sub(r"\s+", " ", (repo / "docs" / "beyond.md").read_text().replace("**", ""))


@pytest.fixture
def found(repo):
    return lambda part: json.loads((repo / "data" / "beyond" / part / "summary.json").read_text())


def short(value: float, digits: int = 3) -> str:
    """As prose writes a share: without the zero before the point."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def test_missing_objects_of_several_concepts(page, found):
    methods = found("several")["methods"]
    ours, base, merged, added = (short(methods[m]["missing"]["mean"]) for m in ("ours", "base", "merged", "added"))
    claim = next(c for c in found("several")["claims"] if c["claim"] == "missing_base")
    more, low, high = (short(0.05 - claim[key]) for key in ("effect", "high", "low"))
    assert (
        f"{ours} are not read as their class, in the base model's own pictures {base} ({more} fewer [{low}, {high}])"
        in page
    )
    assert f"under the merge {merged}; under plain addition it is {added}" in page


def test_halves_lie_on_the_wrong_object(page, found):
    right = found("several")["methods"]["halves"]["mask_right"]
    said = f"({short(right['mean'])} [{short(right['low'])}, {short(right['high'])}] of it is right"
    assert right["high"] < 0.5 and said in page and "more often on the wrong object" in page


def test_three_concepts_do_not_work(page, found):
    ours, added = (found("several")["triples"][m] for m in ("ours", "added"))
    assert f"an identity of {short(ours['worse']['mean'])}" in page and ours["missing"]["mean"] > 0.5
    assert f"({short(ours['leakage']['mean'])} against {short(added['leakage']['mean'])})" in page


def test_off_centre_a_disk_does_as_well(page, found):
    summary = found("masks")
    pictures = summary["pictures"]
    alone = pictures["off-centre"] + pictures["in the middle"]
    assert f"which {pictures['off-centre']} of the {alone} pictures without a second object pass" in page
    disk, auto = (summary["groups"]["off-centre"][m]["dino"]["mean"] for m in ("disk_30", "auto"))
    beside = [short(summary["groups"]["beside another"][m]["dino"]["mean"]) for m in ("disk_30", "auto")]
    assert abs(disk - auto) < 0.005 and f"it is not ({beside[0]} against {beside[1]})" in page


def test_real_photos_without_a_class_of_imagenet(page, found):
    rows = {row["subject"]: row for row in found("nouns")["real"]["rows"]}
    unknown = [rows[s]["confidence"] for s in ("poop_emoji", "red_cartoon", "monster_toy", "robot_toy", "duck_toy")]
    assert f"a confidence of {short(min(unknown), 2)} to {short(max(unknown), 2)}" in page
    assert f"a sloth toy is called a toy, with {short(rows['grey_sloth_plushie']['confidence'], 2)}" in page


def test_one_photo_in_twelve_is_named_wrongly(page, found):
    one = next(a for a in found("nouns")["accuracy"] if a["way"] == "found_1")
    assert f"while {1 - one['mean']:.0%} of such sets are named wrongly" in page


def test_the_looks_that_the_rule_was_tuned_on(page, repo):
    table = pd.read_csv(repo / "data" / "beyond" / "stopping" / "curves.csv")
    means = table[table["set"] == "tuning"].groupby("steps").mean(numeric_only=True)
    for label, column in (("DINO", "dino"), ("the object alone", "dino_object"), ("CLIP text", "clip_text")):
        said = ", ".join(short(means.loc[steps, column]) for steps in (50, 75, 100, 150))
        assert f"{label} {said}" in page


def test_the_committed_table_has_no_row_for_the_found_class(page, repo):
    rows = pd.read_csv(repo / "data" / "rivals" / "table4.csv")["row"]
    assert "found, found" not in set(rows) and "the committed table 4 was drawn before it and has none" in page
