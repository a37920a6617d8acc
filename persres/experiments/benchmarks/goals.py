"""The project's goals of speed beside what was measured: each met or not, with the spread over the rounds."""

from __future__ import annotations

from collections.abc import Iterator

from persres.experiments.benchmarks.models import MINI

Goal = tuple[str, float, dict]  # what is asked, the limit, and ``ratio``, ``low``, ``high`` of what was measured


def goals_of(found: dict) -> list[dict]:
    """The goals of the model and device that was measured: ``goal``, ``limit``, ``measured`` with ``low`` and ``high``, ``met``."""
    asked = [*_drawn(found["sampling"])]
    if found["model"] == MINI:
        asked += _trained(found["training"])
    elif found["device"] != "cpu":
        asked += _on_a_gpu(found)
    return [
        {
            "goal": goal,
            "limit": limit,
            "measured": value["ratio"],
            "low": value["low"],
            "high": value["high"],
            "met": value["ratio"] <= limit,
        }
        for goal, limit, value in asked
    ]


def _drawn(sampling: dict[str, dict]) -> Iterator[Goal]:
    for batch, row in sampling.items():
        yield f"LAG, of the same without, batch {batch}", 1.02, row["ratios"]["lag"]["ours"]
    for batch, row in sampling.items():
        yield f"normal sampling, of the base pipeline, batch {batch}", 1.0, row["ratios"]["ours"]["base pipeline"]


def _trained(train: dict) -> Iterator[Goal]:
    ratios = train["ratios"]
    if "4 together" in ratios:
        yield "four concepts in one pass, of four alone", 0.6, ratios["4 together"]["ours"]
    for name in (n for n in ratios if n != "cached"):
        what = "training alone" if name == "ours" else f"training, {name.split()[0]} concepts in one pass"
        yield f"{what}, of the plain loop", 0.6, ratios[name]["plain"]
        yield f"{what}, of the loop with caches", 0.7, ratios[name]["cached"]


def _on_a_gpu(found: dict) -> Iterator[Goal]:
    train, largest = found["training"], max(found["sampling"], key=int)
    drawn = found["sampling"][largest]
    yield "150 iterations alone, s", 10.0, _seconds(train, "ours", 150)
    for name in (n for n in train["median_s"] if n.endswith(" together")):
        yield f"150 iterations, {name.split()[0]} concepts in one pass, s a concept", 4.0, _seconds(train, name, 150)
    yield f"a picture at 50 steps, batch {largest}, s", 0.25, _seconds(drawn, "ours", 50 / drawn["steps"])


def _seconds(row: dict, way: str, times: float) -> dict:
    """So many times what a way took, in a ratio's form."""
    rounds = row["rounds_s"][way]
    return {k: round(s * times, 3) for k, s in zip(("ratio", "low", "high"), (row["median_s"][way], min(rounds), max(rounds)), strict=True)}  # fmt: skip
