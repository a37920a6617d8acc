"""Figures that one can read: names that lie on nothing, and pictures drawn again from committed summaries."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from persres.experiments.evidence import commands, pages
from persres.experiments.evidence.labels import name_points
from persres.experiments.extensions import study
from persres.experiments.extensions.headlines import BLOCKS, ROWS
from persres.experiments.extensions.masks import figures
from persres.experiments.extensions.redrawn import FIGURES


def crowd() -> list[tuple[str, tuple[float, float], str]]:
    """Four points a pixel or two apart, and one in a corner."""
    close = [(f"close {i}", (0.5 + 0.004 * (i % 2), 0.5 + 0.004 * (i // 2)), "black") for i in range(4)]
    return [*close, ("in the corner", (0.999, 0.999), "red")]


def test_names_lie_on_no_other_name_and_on_no_line():
    figure, axis = plt.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    (line,) = axis.plot([0.3, 0.9], [0.5, 0.52])
    labels = name_points(axis, [*crowd(), ("outside", (2.0, 0.5), "black")])
    assert [label.get_text() for label in labels] == [name for name, _, _ in crowd()], "what is not shown has no name"
    figure.canvas.draw()  # which moves names to their places
    boxes = [Text.get_window_extent(label) for label in labels]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    assert not any(line.get_path().transformed(axis.transData).intersects_bbox(box, False) for box in boxes)
    plt.close(figure)


def test_the_frontier_names_auto_beside_its_neighbours(repo, tmp_path, monkeypatch):
    """The point of the figure: auto, smooth, soft and the share of 30% lie close together, and each can be read."""
    named: list[list[Text]] = []
    monkeypatch.setattr(figures, "name_points", lambda axis, points: named.append(name_points(axis, points)))
    monkeypatch.setattr(figures, "save", lambda figure, path: (figure.canvas.draw(), plt.close(figure)))
    summary = json.loads((repo / "data" / "beyond" / "masks" / "summary.json").read_text())
    figures.frontier_figure(summary["methods"], tmp_path / "frontier.png")
    right = {label.get_text(): label for label in named[1]}
    assert {"auto", "smooth", "soft", "auto_disk", "30%"} <= set(right)
    for labels in named:
        boxes = [Text.get_window_extent(label) for label in labels]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_every_picture_that_can_be_drawn_again_is_committed(repo):
    for name, files in FIGURES.items():
        for file in files:
            assert (repo / "data" / "beyond" / name / file).is_file()


def test_results_quote_each_part_with_what_does_not_hold(repo):
    found = {name: json.loads((repo / "data" / "beyond" / name / "summary.json").read_text()) for name in study.NAMES}
    text = (repo / "docs" / "results.md").read_text()
    assert pages.block_names(text, "beyond") == ["claims"] and pages.fill(text, found, BLOCKS, "beyond") == text
    headings = {line[3:].lower().replace(",", "").replace(" ", "-") for line in (repo / "docs" / "beyond.md").read_text().splitlines() if line.startswith("## ")}  # fmt: skip
    assert set(ROWS) == set(study.NAMES)
    for name, (_, place, claims) in ROWS.items():
        holds = {c["claim"]: c["holds"] for c in found[name]["claims"]}
        assert place in headings and {holds[claim] for claim in claims} == {True, False}, name


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty place with a page of its own, in which a part is measured by taking the committed summary."""
    page = tmp_path / "results.md"
    page.write_text("<!-- beyond:claims -->\n<!-- /beyond -->\n")
    monkeypatch.setattr(commands, "PAGES", (page,))

    def measured(name, run, out):
        folder = out / "beyond" / name
        folder.mkdir(parents=True)
        committed = Path(__file__).parents[2] / "data" / "beyond" / name / "summary.json"
        (folder / "summary.json").write_text(committed.read_text())
        return folder

    monkeypatch.setattr(commands.beyond, "run_part", measured)
    return tmp_path


def test_what_is_measured_is_drawn_and_told_once_all_is_there(elsewhere, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        commands, "redraw", lambda name, summary, folder: drawn.append((name, len(summary["claims"]) > 0))
    )
    folders = list(commands.run_extensions(study.NAMES[:-1], study.Run(Path("params.yaml"), elsewhere), elsewhere))
    assert [folder.name for folder in folders] == [name for name, _ in drawn] == list(study.NAMES[:-1])
    assert "| [" not in (elsewhere / "results.md").read_text(), "the rows of a part that is not there would be lost"
    list(commands.run_extensions(study.NAMES[-1:], study.Run(Path("params.yaml"), elsewhere), elsewhere))
    assert "| [several concepts](beyond.md" in (elsewhere / "results.md").read_text()
