"""The project's speed goals, each met or not, with the spread over the rounds."""

from __future__ import annotations

from collections.abc import Iterator

from persres.experiments.benchmarks.models import MINI

Goal = tuple[str, float, dict]  # text, limit, and ``ratio``, ``low``, ``high`` as measured


def goals_of(record: dict) -> list[dict]:
    """Return the goals for the record's model and device: ``goal``, ``limit``, ``measured`` with ``low`` and ``high``, ``met``."""
    goals = [*_sampling_goals(record["sampling"])]
    if record["model"] == MINI:
        goals += _training_goals(record["training"])
    elif record["device"] != "cpu":
        goals += _gpu_goals(record)
    return [
        {
            "goal": goal,
            "limit": limit,
            "measured": value["ratio"],
            "low": value["low"],
            "high": value["high"],
            "met": value["ratio"] <= limit,
        }
        for goal, limit, value in goals
    ]


def _sampling_goals(sampling: dict[str, dict]) -> Iterator[Goal]:
    for batch, row in sampling.items():
        yield f"sampling with LAG / without, batch {batch}", 1.02, row["ratios"]["lag"]["ours"]
    for batch, row in sampling.items():
        yield f"sampling without LAG / diffusers' pipeline, batch {batch}", 1.0, row["ratios"]["ours"]["base pipeline"]


def _training_goals(training: dict) -> Iterator[Goal]:
    ratios = training["ratios"]
    if "4 concepts" in ratios:
        yield "training of 4 concepts per batch / of 1", 0.6, ratios["4 concepts"]["ours"]
    for name in (n for n in ratios if n != "cached"):
        count = "1 concept" if name == "ours" else name
        yield f"training of {count} per batch / plain loop", 0.6, ratios[name]["plain"]
        yield f"training of {count} per batch / loop with caches", 0.7, ratios[name]["cached"]


def _gpu_goals(record: dict) -> Iterator[Goal]:
    training, largest = record["training"], max(record["sampling"], key=int)
    sampling = record["sampling"][largest]
    yield "150 training steps of 1 concept, s", 10.0, _seconds(training, "ours", 150)
    for name in (n for n in training["median_s"] if n.endswith(" concepts")):
        yield f"150 training steps of {name} per batch, s per concept", 4.0, _seconds(training, name, 150)
    yield f"one image of 50 steps, batch {largest}, s", 0.25, _seconds(sampling, "ours", 50 / sampling["steps"])


def _seconds(row: dict, name: str, factor: float) -> dict:
    """Seconds of ``name`` times ``factor``, in the form of a ratio."""
    rounds = row["rounds_s"][name]
    values = (row["median_s"][name], min(rounds), max(rounds))
    return {key: round(s * factor, 3) for key, s in zip(("ratio", "low", "high"), values, strict=True)}
