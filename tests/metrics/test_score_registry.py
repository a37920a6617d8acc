"""Scores are declared once: the registry, its functions, and what reads it."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml

from persres.metrics.paper_figures import PAPER
from persres.metrics.scores import HEADLINE_SCORES, PAPER_SCORES, SCORE_MODULES, SCORES, Score, score_columns
from persres.metrics.summary import config_table
from persres.report.table_text import write_table
from persres.report.terminal import score_table


@pytest.mark.parametrize("score", SCORES.values(), ids=lambda score: score.name)
def test_every_score_has_its_function(score):
    assert list(inspect.signature(score.function).parameters) == ["inputs"]
    assert score.function.__module__ in SCORE_MODULES and score.function.__doc__


def test_the_papers_scores_and_those_of_the_terminal():
    assert PAPER_SCORES == ("clip_text", "clip_image", "dino")
    assert HEADLINE_SCORES == ("clip_text", "clip_image", "dino", "background_change")
    better = {name: score.higher_is_better for name, score in SCORES.items()}
    assert [name for name, higher in better.items() if not higher] == ["background_change"]
    classified = [name for name, score in SCORES.items() if score.needs_classifier]
    assert classified == ["dino_object", "followed", "background_change"]


def test_the_papers_scores_are_its_figures():
    assert all(len(row) == len(PAPER_SCORES) for table in PAPER.values() for row in table.values())


def test_dvc_plots_the_papers_scores(repo):
    plots = [next(iter(plot.values())) for plot in yaml.safe_load((repo / "dvc.yaml").read_text())["plots"]]
    drawn = {(plot["x"], file.split("/")[-1], column) for plot in plots for file, column in plot["y"].items()}
    text, *image = PAPER_SCORES
    assert {row for row in drawn if row[1] == "categories.csv"} == {(text, "categories.csv", score) for score in image}
    assert {column for x, _, column in drawn if x == "prompt_group"} <= set(PAPER_SCORES)


def test_a_new_score_is_a_function_and_a_line(monkeypatch, tmp_path):
    module = ModuleType("persres.metrics.sharpness")
    module.sharpness = lambda inputs: np.full(inputs, 0.25)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SCORES, "sharpness", Score("sharpness", "Sharpness", "sharpness", digits=2, note="a note."))
    rows = pd.DataFrame({"config": "ours", "concept": list("abcdef"), "sharpness": SCORES["sharpness"].function(6)})
    assert score_columns(rows) == ["sharpness"]
    table = config_table(rows, ["sharpness"], 200, 0).assign(params=1, concepts=6, images=6)
    write_table(tmp_path / "table1", "Table 1", table, "")
    assert "| ours | 0.250 [0.250, 0.250] |" in (tmp_path / "table1.md").read_text()
    assert score_table("Table 1", table).columns[1].header == "parameters", "only headline scores are printed"
