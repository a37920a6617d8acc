"""A benchmark record as Markdown tables."""

from __future__ import annotations

from persres.report.table_text import markdown as table

TITLES = {
    "ours": "ours",
    "plain": "diffusers + peft, the script's loop",
    "cached": "the same, latents and text cached",
    "base pipeline": "StableDiffusionPipeline, base model",
    "lag": "ours, LAG",
    "lag auto": "ours, LAG with our masks",
}


def title(name: str) -> str:
    """Return the label of a measured variant."""
    return TITLES.get(name, f"ours, {name} per batch")


def spread(value: dict | None) -> str:
    """Return a ratio with the minimum and maximum over the rounds; empty without a ratio."""
    if value is None:
        return ""
    return f"{value['ratio']:.3f}" + (f" [{value['low']:.2f}, {value['high']:.2f}]" if value["low"] is not None else "")


def markdown(record: dict) -> str:
    """Return all tables: training, sampling, images of several concepts, goals."""
    parts = [_training(record["training"]), _sampling(record["sampling"])]
    parts += [_batched(record["batched"])] if "batched" in record else []
    return "\n".join([heading(record), *parts, goals(record)])


def heading(record: dict) -> str:
    """Return the setting of a record in a sentence or three."""
    threads, rate = record["threads"], record["matmul_gflop_s"]
    brackets = "; brackets: minimum and maximum" if "rounds_s" in record["training"] else ""
    return (
        f"{record['model']}, {record['weights']} weights, {record['resolution']} px, {record['dtype']}, {record['device']},"
        f" {threads} thread{'s' * (threads != 1)}. Seconds are medians of {record['rounds']} alternating rounds, ratios medians of the"
        f" rounds' ratios{brackets}. FLOP lower bound: at {rate:,} GFLOP/s, the rate of a large matrix product\n"
    )


def _training(training: dict) -> str:
    rows = [
        [title(n), f"{s:.4f}", f"{training['over_flop_bound'][n]:.1f}"]
        + [spread(training["ratios"].get(n, {}).get(other)) for other in ("plain", "cached", "ours")]
        for n, s in training["median_s"].items()
    ]
    heads = [f"training, one step of batch {training['batch']} of one concept", "seconds", "/ FLOP lower bound"]
    return table([*heads, "/ plain loop", "/ loop with caches", "/ ours, 1 concept"], rows)


def _sampling(sampling: dict[str, dict]) -> str:
    rows = [
        [title(n), batch, f"{s / row['steps']:.4f}", f"{row['over_flop_bound'][n]:.1f}"]
        + [spread(row["ratios"].get(n, {}).get(other)) for other in ("base pipeline", "ours")]
        for batch, row in sampling.items()
        for n, s in row["median_s"].items()
    ]
    heads = ["sampling, one step of one image", "batch", "seconds", "/ FLOP lower bound"]
    return table([*heads, "/ diffusers' pipeline", "/ ours without LAG"], rows)


def _batched(batched: dict) -> str:
    rows = []
    for name, s in batched["median_s"].items():
        (ratio,) = batched["ratios"].get(name, {"": None}).values()
        rows.append([name, f"{s / batched['steps']:.4f}", spread(ratio)])
    heads = [f"one image of each of {batched['concepts']} concepts, one step of one image", "seconds", "/ one by one"]
    return table(heads, rows)


def goals(record: dict) -> str:
    """Return the goals as a table."""
    rows = [
        [g["goal"], f"{g['limit']:g}", spread(g | {"ratio": g["measured"]}), "met" if g["met"] else "**not met**"]
        for g in record["goals"]
    ]
    return table(["goal", "at most", "measured", ""], rows)
