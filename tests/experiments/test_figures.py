"""Labels of figures do not overlap, and figures are drawn from committed summaries."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from persres.experiments.evidence import commands, pages
from persres.experiments.evidence.figures import Label, label_points
from persres.experiments.extensions import study
from persres.experiments.extensions.headlines import BLOCKS, ROWS
from persres.experiments.extensions.masks import figures
from persres.experiments.extensions.redrawn import FIGURES

pytest.importorskip("adjustText", reason="in the extra experiments")


def overlaps(labels: list[Text]) -> list[tuple[str, str]]:
    boxes = [(label.get_text(), Text.get_window_extent(label)) for label in labels]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def test_labels_do_not_overlap_and_stay_in_the_axes():
    figure, axis = plt.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.plot([0.3, 0.9], [0.5, 0.52])
    close: list[Label] = [(f"close {i}", (0.5 + 0.004 * (i % 2), 0.5 + 0.004 * (i // 2)), "black") for i in range(4)]
    points = [*close, ("in the corner", (0.999, 0.999), "red")]
    labels = label_points(axis, [*points, ("outside", (2.0, 0.5), "black")])
    assert [label.get_text() for label in labels] == [text for text, _, _ in points]
    figure.canvas.draw()
    frame, boxes = axis.get_window_extent(), [Text.get_window_extent(label) for label in labels]
    assert not overlaps(labels)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    plt.close(figure)


def test_the_frontier_labels_auto_next_to_its_neighbours(repo, tmp_path, monkeypatch):
    drawn: list[list[Text]] = []
    monkeypatch.setattr(figures, "label_points", lambda axis, labels: drawn.append(label_points(axis, labels)))
    monkeypatch.setattr(figures, "save", lambda figure, path: (figure.canvas.draw(), plt.close(figure)))
    summary = json.loads((repo / "data" / "extensions" / "masks" / "summary.json").read_text())
    figures.frontier_figure(summary, tmp_path / "frontier.png")
    assert {"auto", "smooth", "soft", "auto_disk", "30%"} <= {label.get_text() for label in drawn[1]}
    assert not overlaps(drawn[0]) and not overlaps(drawn[1])


def test_every_figure_that_can_be_redrawn_is_committed(repo):
    for name, files in FIGURES.items():
        for file in files:
            assert (repo / "data" / "extensions" / name / file).is_file()


def test_results_quote_each_study_with_what_does_not_hold(repo):
    folder = repo / "data" / "extensions"
    summaries = {name: json.loads((folder / name / "summary.json").read_text()) for name in study.NAMES}
    text = (repo / "docs" / "results.md").read_text()
    assert pages.block_names(text, "extensions") == ["claims"]
    assert pages.fill(text, summaries, BLOCKS, "extensions") == text, "stale: run persres dev pages"
    assert set(ROWS) == set(study.NAMES)
    for name, (_, claims) in ROWS.items():
        holds = {c["claim"]: c["holds"] for c in summaries[name]["claims"]}
        assert {holds[claim] for claim in claims} == {True, False}, name


@pytest.fixture
def empty_folder(tmp_path, monkeypatch, repo) -> Path:
    """A folder with an empty page, in which a study is measured by copying the committed summary."""
    page = tmp_path / "results.md"
    page.write_text("<!-- extensions:claims -->\n<!-- /extensions -->\n")
    monkeypatch.setattr(commands, "PAGES", (page,))

    def run_study(name: str, run: study.Run, out: Path) -> Path:
        folder = out / "extensions" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text((repo / "data" / "extensions" / name / "summary.json").read_text())
        return folder

    monkeypatch.setattr(commands.study, "run_study", run_study)
    return tmp_path


def test_headlines_are_written_once_all_studies_are_measured(empty_folder):
    run, page = study.Run(Path("params.yaml"), empty_folder), empty_folder / "results.md"
    folders = list(commands.run_extensions(study.NAMES[:-1], run, empty_folder))
    assert [folder.name for folder in folders] == list(study.NAMES[:-1])
    assert "| [" not in page.read_text(), "the rows of a missing study would be lost"
    list(commands.run_extensions(study.NAMES[-1:], run, empty_folder))
    assert "| [several concepts in one image](extensions/multi_concept.md)" in page.read_text()
