"""The settings that the paper does not state or fixes for Stable Diffusion, swept on the mini world.

``balance`` is the product of the object's identity (DINO without its background) and the share of the prompt that the image follows: a
residual that learns nothing loses the first, one that learns too much the second.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from persres.experiments.evidence.provenance import provenance
from persres.metrics.scores import score_columns
from persres.metrics.summary import config_table
from persres.report.table_text import markdown
from persres.units.context import Context
from persres.units.outputs import ConfigFacts, read_index

SHOWN = ("init", "init_gain", "lr", "steps", "rank_ratio")


def sweep_table(context: Context, out: Path) -> pd.DataFrame:
    """Write ``sweep.csv`` and ``sweep.md``: one row per config with settings and scores."""
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    columns, facts = score_columns(rows), read_index(context).configs
    table = config_table(rows, columns, context.profile.tables.bootstrap, 0)
    table["balance"] = table["dino_object"] * table["followed"]
    about = [_about(context, facts[name]) for name in table["config"]]
    table = pd.concat([table[["config"]], pd.DataFrame(about), table.drop(columns="config")], axis=1)
    table.to_csv(out / "sweep.csv", index=False)
    (out / "sweep.md").write_text(_text(context, table, columns))
    settings = provenance(context.profile)
    (out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    return table


def _about(context: Context, config: ConfigFacts) -> dict[str, object]:
    sampling = config.sampling
    if sampling.variant is None:
        return {"parameters": None} | dict.fromkeys(SHOWN) | {"sampling": "base", "last_losses": None}
    settings = context.profile.train.variant(sampling.variant)
    return {
        "parameters": config.parameters,
        **{name: getattr(settings, name) for name in SHOWN},
        "sampling": f"LAG, unconditional branch: {sampling.uncond_rule}" if sampling.lag else "plain",
        "last_losses": _last_losses(context.data / "learned" / sampling.variant),
    }


def _last_losses(folder: Path, count: int = 25) -> float:
    """Mean loss of the last steps over all concepts."""
    tails = [
        [json.loads(line)["loss"] for line in path.read_text().splitlines()[-count:]]
        for path in folder.glob("*.log.jsonl")
    ]
    return sum(map(sum, tails)) / sum(map(len, tails))


def _text(context: Context, table: pd.DataFrame, columns: list[str]) -> str:
    shown = ["config", "parameters", *SHOWN, "sampling", "last_losses", *columns, "balance"]
    body = markdown(shown, [[_cell(row[c]) for c in shown] for _, row in table.iterrows()])
    sampling = context.profile.sample
    return (
        f"# Sweep of what the paper leaves open\n\n{body}\n{len(context.profile.fetch.concepts)} concepts × {sampling.prompts} prompts"
        f" × {sampling.images_per_prompt} image(s), {sampling.steps} steps. balance = dino_object × followed. Intervals are in sweep.csv.\n"
    )


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
