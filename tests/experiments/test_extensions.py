"""Every study: committed figures belong to the shipped weights, pages and tables quote them, and negative controls fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from persres.errors import PersresError
from persres.experiments.evidence import pages
from persres.experiments.evidence.provenance import weight_digests
from persres.experiments.extensions.study import NAMES, blocks_of, study_named, tables
from persres.experiments.extensions.verdicts import at_most, claim, verdict

# Claims that do not hold, by study. The pages say so in prose, so these lists are exact.
ABSENT: dict[str, set[str]] = {
    "masks": {"quarter", "share_40", "share_50", "disk_off_centre"},
    "lag_by_prompt": {"appearance_identity", "appearance_text"},
    "early_stopping": {"identity_dino", "identity_clip", "identity_object", "over_mean", "over_permuted"},
    "masked_lora": {"attention_efficiency_disk", "convolutions_efficiency_disk", "text_halved", "text_efficiency_disk"},
    "zero_shot_class": {"encoder_over_nearest"},
    "multi_concept": {"contrast_merged", "contrast_per_block", "worse_halves_best", "missing_base"},
}
# Claims that hold under a negative control all the same; the page explains it.
STILL_HOLD = {("multi_concept", "worse_base", "the second concept's residual zeroed")}


@pytest.fixture(params=NAMES)
def measured(request, repo) -> tuple:
    path = repo / "data" / "extensions" / request.param / "summary.json"
    return study_named(request.param), json.loads(path.read_text())


def test_the_figures_belong_to_the_shipped_weights(measured):
    _, summary = measured
    assert summary["provenance"]["weights"] == weight_digests()
    assert summary["provenance"]["commit"] and summary["provenance"]["date"]


def test_claims_hold_except_the_listed_ones(measured):
    study, summary = measured
    assert {c["claim"] for c in summary["claims"] if not c["holds"]} == ABSENT[study.name]
    for c in summary["claims"]:
        assert not c["holds"] or (c["effect"] >= c["margin"] and c["low"] > 0), c


def test_negative_controls_fail(measured):
    study, summary = measured
    failed = 0
    for what, verdicts in summary["negative_controls"].items():
        for name, value in verdicts.items():
            still = (study.name, name, what) in STILL_HOLD
            expected = "never held" if name in ABSENT[study.name] else "still holds" if still else "fails"
            assert value == expected, (what, name)
            failed += value == "fails"
    tested = {name for verdicts in summary["negative_controls"].values() for name in verdicts}
    assert failed and tested <= {c["claim"] for c in summary["claims"]}


def test_page_and_tables_quote_the_summary(measured, repo):
    study, summary = measured
    page = (repo / "docs" / "extensions" / f"{study.name}.md").read_text()
    names = pages.block_names(page, study.name)
    assert "measured" in names and len(names) == 2, "one table on a page"
    assert pages.fill(page, summary, blocks_of(study), study.name) == page, "stale: run persres dev pages"
    text = (repo / "data" / "extensions" / study.name / "tables.md").read_text()
    assert text == tables(study, summary), "stale: run persres dev pages"


def test_a_page_has_at_most_two_screens(measured, repo):
    study, _ = measured
    assert len((repo / "docs" / "extensions" / f"{study.name}.md").read_text().splitlines()) <= 60


def test_a_claim_needs_its_margin_and_its_interval():
    clear = np.linspace(0.09, 0.11, 10)
    assert claim("a", "", "dino", clear, 0.05)["holds"]
    assert not claim("a", "", "dino", clear, 0.2)["holds"], "below its margin"
    assert not claim("a", "", "dino", np.linspace(-0.5, 0.6, 10), 0.01)["holds"], "the interval contains zero"
    assert not claim("a", "", "dino", clear[:3], 0.05)["holds"], "too few concepts"
    assert at_most("a", "", "dino", clear - 0.1, 0.05)["holds"] and not at_most("a", "", "dino", clear, 0.05)["holds"]


def test_a_claim_that_never_held_proves_nothing_by_failing():
    yes, no = {"holds": True}, {"holds": False}
    assert (verdict(yes, no), verdict(yes, yes), verdict(no, no)) == ("fails", "still holds", "never held")


def test_an_unknown_study_is_refused():
    with pytest.raises(PersresError, match="no study 'nonsense'"):
        study_named("nonsense")
