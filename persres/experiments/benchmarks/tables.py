"""The suite's figures as tables."""

from __future__ import annotations

from persres.report.table_text import markdown as table

TITLES = {
    "ours": "ours",
    "plain": "diffusers + peft, the script's loop",
    "cached": "the same with latents and text cached",
    "base pipeline": "StableDiffusionPipeline, base model",
    "lag": "ours, LAG",
    "lag auto": "ours, LAG with our masks",
}


# What records of before lack.
SPREAD_LOST = "of which this run kept nothing else, so there is no spread"
MIXED_LACKS = "Pictures of several concepts in one batch beside one by one: not in this run.\n"


def title(name: str) -> str:
    """How the pages call a way."""
    return TITLES.get(name, f"ours, {name.replace(' together', ' concepts in one pass')}")


def spread(value: dict | None) -> str:
    """A ratio with the least and the largest of the rounds; nothing where two ways are not compared."""
    if value is None:
        return ""
    return f"{value['ratio']:.3f}" + (f" [{value['low']:.2f}, {value['high']:.2f}]" if value["low"] is not None else "")


def markdown(found: dict) -> str:
    """Everything: training, sampling, pictures of several concepts, goals."""
    threads, rate = found["threads"], found["matmul_gflop_s"]
    kept = "in brackets the least and the largest of them" if "rounds_s" in found["training"] else SPREAD_LOST
    head = (
        f"{found['model']}, {found['weights']} weights, {found['resolution']} px, {found['dtype']}, {found['device']},"
        f" {threads} thread{'s' * (threads != 1)}. Seconds are medians of {found['rounds']} rounds of alternating runs; ratios are medians of"
        f" the rounds' own ratios, {kept}. Floor: operations at"
        f" {rate:,} GFLOP/s, what a large matrix product reaches here\n"
    )
    parts = [_training(found["training"]), _sampling(found["sampling"])]
    parts.append(_mixed(found["mixed"]) if "mixed" in found else MIXED_LACKS)
    return "\n".join([head, *parts, _goals(found["goals"])])


def _training(train: dict) -> str:
    rows = [
        [title(n), f"{s:.4f}", f"{train['over_floor'][n]:.1f}"]
        + [spread(train["ratios"].get(n, {}).get(other)) for other in ("plain", "cached", "ours")]
        for n, s in train["median_s"].items()
    ]
    heads = [f"training, a step of batch {train['batch']} of one concept", "seconds", "over the floor"]
    return table([*heads, "of the plain loop", "of the loop with caches", "of ours alone"], rows)


def _sampling(sampling: dict[str, dict]) -> str:
    rows = [
        [title(n), batch, f"{s / row['steps']:.4f}", f"{row['over_floor'][n]:.1f}"]
        + [spread(row["ratios"].get(n, {}).get(other)) for other in ("base pipeline", "ours")]
        for batch, row in sampling.items()
        for n, s in row["median_s"].items()
    ]
    heads = ["sampling, a step of one picture", "batch", "seconds", "over the floor"]
    return table([*heads, "of the base pipeline", "of ours without LAG"], rows)


def _mixed(mixed: dict) -> str:
    rows = []
    for name, s in mixed["median_s"].items():
        (ratio,) = mixed["ratios"].get(name, {"": None}).values()
        rows.append([name, f"{s / mixed['steps']:.4f}", spread(ratio)])
    return table([f"a picture of each of {mixed['concepts']} concepts, a step of one picture", "seconds", "of one by one"], rows)  # fmt: skip


def _goals(goals: list[dict]) -> str:
    rows = [
        [g["goal"], f"{g['limit']:g}", spread(g | {"ratio": g["measured"]}), "met" if g["met"] else "**not met**"]
        for g in goals
    ]
    return table(["goal", "at most", "measured", ""], rows)
