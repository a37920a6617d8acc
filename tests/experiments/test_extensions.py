"""Past the paper: every part's committed figures belong to today's code, its page quotes them, and what was broken falls."""

from __future__ import annotations

import json

import numpy as np
import pytest

from persres.errors import PersresError
from persres.experiments.evidence import pages
from persres.experiments.evidence.provenance import stands_for, weight_digests
from persres.experiments.extensions.study import NAMES, blocks_of, study_named
from persres.experiments.extensions.verdicts import at_most, claim, verdict

# What docs/beyond.md says does not hold, by part. A claim that comes or goes must change its prose, so these lists are exact.
ABSENT: dict[str, set[str]] = {
    "masks": {"quarter", "share_40", "share_50", "disk_off"},
    "choosing": {"looks_identity", "looks_text"},
    "stopping": {"identity_dino", "identity_clip", "identity_object", "over_mean", "over_permuted"},
    "loras": {"attention_worth_disk", "convolutions_worth_disk", "text_halved", "text_worth_disk"},
    "nouns": {"votes_over_nearest"},
    "several": {"contrast_merged", "contrast_own_blocks", "worse_halves_best", "missing_base"},
}
# What a broken method passes all the same; the page says why.
PASSED = {("several", "worse_base", "the second concept's residual zeroed")}


@pytest.fixture(params=NAMES)
def found(request, repo) -> tuple:
    path = repo / "data" / "beyond" / request.param / "summary.json"
    return study_named(request.param), json.loads(path.read_text())


def test_the_figures_belong_to_todays_weights_and_code(found):
    part, summary = found
    assert summary["of"]["weights"] == weight_digests(), "other weights ship"
    said = f"numerics have changed since: persres dev extensions {part.name}, or show by persres same --part {part.name} that they compute the same"
    assert stands_for(summary["of"], part.modules), said


def test_the_claims_hold_but_for_those_that_the_page_names(found):
    part, summary = found
    assert {c["claim"] for c in summary["claims"] if not c["holds"]} == ABSENT.get(part.name, set())
    assert len(summary["claims"]) > 0
    for c in summary["claims"]:
        assert not c["holds"] or (c["effect"] >= c["margin"] and c["low"] > 0), c


def test_what_is_broken_on_purpose_falls(found):
    """All that hold of the whole method; what does not hold can't fall, and is said not to."""
    part, summary = found
    absent, fell = ABSENT.get(part.name, set()), 0
    for what, names in summary["broken"].items():
        for name, verdict_ in names.items():
            expected = (
                "not held unbroken"
                if name in absent
                else "still holds"
                if (part.name, name, what) in PASSED
                else "falls"
            )
            assert verdict_ == expected, (what, name)
            fell += verdict_ == "falls"
    assert fell and {n for names in summary["broken"].values() for n in names} <= {
        c["claim"] for c in summary["claims"]
    }


def test_the_page_quotes_the_summary(found, repo):
    part, summary = found
    text = (repo / "docs" / "beyond.md").read_text()
    assert set(pages.block_names(text, part.name)) == set(blocks_of(part))
    assert pages.fill(text, summary, blocks_of(part), part.name) == text, (
        "docs/beyond.md is stale: run persres dev pages"
    )


def test_a_claim_needs_its_margin_and_its_interval():
    clear = np.linspace(0.09, 0.11, 10)
    assert claim("a", "", "dino", clear, 0.05)["holds"]
    assert not claim("a", "", "dino", clear, 0.2)["holds"], "below its margin"
    assert not claim("a", "", "dino", np.linspace(-0.5, 0.6, 10), 0.01)["holds"], "the interval reaches zero"
    assert not claim("a", "", "dino", clear[:3], 0.05)["holds"], "too few to tell"
    assert at_most("a", "", "dino", clear - 0.1, 0.05)["holds"] and not at_most("a", "", "dino", clear, 0.05)["holds"]


def test_a_claim_that_never_held_proves_nothing_by_falling():
    yes, no = {"holds": True}, {"holds": False}
    assert (verdict(yes, no), verdict(yes, yes), verdict(no, no)) == ("falls", "still holds", "not held unbroken")


def test_an_unknown_part_is_refused():
    with pytest.raises(PersresError, match="no part 'nonsense'"):
        study_named("nonsense")
