"""The measurement of when to stop: what the rule is compared with, from losses and scores made up here."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from persres.experiments.extensions.early_stopping.claims import (
    StopSteps,
    negative_controls,
    net_saved,
    scores_by_rule,
    stop_step,
    stopping_claims,
    thresholds,
)
from persres.experiments.extensions.early_stopping.traces import COLUMNS
from persres.methods.ours import Ours

RULE = Ours(stop="early", early_stop_every=25, early_stop_draws=16, early_stop_below=0.1)
NAMES = [f"c{i}" for i in range(6)]
STOPS = StopSteps(np.array([75, 100, 75, 125, 100, 75]), np.array([50, 125, 75, 50, 75, 100]), np.full(6, 50), 150)


def losses(settles_at: int) -> list[float]:
    """Falls by 1 a check until it has settled, then hardly."""
    return [20.0 - min(check, settles_at) - 0.01 * check for check in range(13)]


def scores(gain=lambda number, steps: min(steps, 75) / 150) -> pd.DataFrame:
    """Identity grows with the steps, text falls a little."""
    rows = []
    for number, name in enumerate(NAMES):
        for steps in STOPS.needed(number):
            row = {column: gain(number, steps) + number / 100 for column in COLUMNS}
            rows.append({"concept": name, "steps": steps} | row | {"clip_text": 0.7 - steps / 1e4, "followed": 0.5})
    return pd.DataFrame(rows)


def test_where_the_rule_stops_a_known_training():
    assert stop_step(losses(2), RULE) == 75 and stop_step(losses(3), RULE) == 100
    assert stop_step(losses(12), RULE) == 150, "steps are the upper bound"


def test_checks_are_paid():
    # six checks of 16 samples forward, against a batch of 4 forward and backward: 12 steps
    assert net_saved(np.array([150]), RULE) == pytest.approx([-12 / 150])
    assert net_saved(np.array([75]), RULE) == pytest.approx([1 - (75 + 8) / 150])


def test_permuted_stops_equal_the_mean_over_all_assignments():
    result = scores_by_rule(STOPS, scores(lambda number, steps: (number + 1) * steps / 1000))
    every = [
        np.mean([(number + 1) * s / 1000 + number / 100 for number, s in enumerate(p)])
        for p in permutations(STOPS.rule)
    ]
    assert result["permuted"]["dino"].mean() == pytest.approx(np.mean(every))
    assert result["mean"]["steps"].tolist() == [95] * 6 and result["quarter"]["steps"].tolist() == [35] * 6


def test_the_claims_tell_a_good_rule_from_a_broken_one():
    result = scores_by_rule(STOPS, scores())
    claims = stopping_claims(result, "rule", RULE)
    held = {c["claim"] for c in claims if c["holds"]}
    assert held == {"steps_saved", "identity_dino", "identity_clip", "identity_object", "text_clip", "text_followed"}
    verdicts = negative_controls(result, claims, RULE)
    assert {verdict for names in verdicts.values() for verdict in names.values()} == {"fails"}


def test_stops_that_fit_the_concepts_are_seen():
    """Identity stands still exactly from each concept's own stop on."""
    result = scores_by_rule(STOPS, scores(lambda number, steps: min(steps, STOPS.rule[number]) / 100))
    held = {c["claim"] for c in stopping_claims(result, "rule", RULE) if c["holds"]}
    assert "over_permuted" in held and "identity_dino" in held


def test_a_threshold_is_read_from_the_curves():
    known = {"c0": losses(2), "c1": losses(3)}
    table = pd.DataFrame(
        [{"concept": n, "steps": s, **dict.fromkeys(COLUMNS, s / 150)} for n in known for s in range(25, 151, 25)]
    )
    (row,) = thresholds(known, table, RULE, (0.1,))
    assert row["steps"] == 87.5 and row["dino"] == pytest.approx(1 - 87.5 / 150)
