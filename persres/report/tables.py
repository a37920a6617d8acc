"""The paper's tables from the score rows.

``methods`` has every config over all of its images. The paper's tables (``tables.rows``) compare like with like: each covers
the images (same concept, prompt and noise) that all of its configs have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from persres.config.schema import SamplingConfig
from persres.metrics.ceiling import ceiling_row
from persres.metrics.paper_figures import MODEL, PAPER
from persres.metrics.scores import HEADLINE_SCORES, PAPER_SCORES, score_columns
from persres.metrics.summary import config_table, difference
from persres.report.plots import category_figure, group_figure
from persres.report.table_text import RUN, table_notes, write_table
from persres.units.context import Context
from persres.units.costs import read_costs
from persres.units.outputs import ConfigFacts, read_index, scores_path
from persres.untrusted.documents import read_yaml

CEILING_NOTES = """- share: (config − base model) / (ground truth − base model), of means over concepts; 1 is what a perfect image scores.
- distance: config − ground truth. A perfect image may score lower in CLIP text than the base model's.
- [low, high] is the 95% bootstrap interval over concepts, from five concepts on. Each config is compared over the images that it shares with both."""
IMAGE = ["concept", "prompt", "image"]  # columns that identify an image of a config


def write_tables(context: Context, out: Path) -> None:
    """Write the tables, the paired differences, and scores by prompt group and category."""
    rows, configs = pd.read_parquet(scores_path(context.data)), read_index(context).configs
    settings, columns, names = context.profile.tables, score_columns(rows), list(dict.fromkeys(rows["config"]))
    resampling = (settings.bootstrap, settings.seed)
    notes = table_notes(context, rows, columns)
    overview = _with_costs(context, config_table(rows, columns, *resampling), rows)
    write_table(out / "methods", "Every config, over all of its images", overview, notes)
    for name, titles in ({"table1": {n: n for n in names}} | settings.rows).items():
        shared = shared_images(rows, list(titles))
        table = _with_costs(context, config_table(shared, columns, *resampling), shared)
        if name == "table1":
            (out / "metrics.json").write_text(metrics_text(table))
        table = paper_table(table, name, titles, context.profile.base.model)
        write_table(out / name, f"Table {name.removeprefix('table')}", table, table_notes(context, shared, columns))
    pairs = _pairs(context, names, configs)
    paired = [difference(shared_images(rows, list(pair)), columns, pair, *resampling) for pair in pairs]
    write_table(out / "differences", "Paired differences (same prompts, same noise)", pd.DataFrame(paired), notes)
    for name, title, key, figure in (
        ("groups", "By prompt group", "prompt_group", group_figure),
        ("categories", "By category", "category", category_figure),
    ):
        by_key = rows.groupby(key, sort=False)
        parts = [config_table(part, columns, *resampling).assign(**{key: value}) for value, part in by_key]
        table = pd.concat(parts, ignore_index=True)
        write_table(out / name, title, table[[key, *table.columns[:-1]]], notes)
        figure(table, out / f"{name}.png")
    _write_ceiling(rows, configs, out, resampling)
    (out / RUN).write_text(run_text(context))


def _write_ceiling(rows: pd.DataFrame, configs: dict[str, ConfigFacts], out: Path, resampling: tuple[int, int]) -> None:
    """``ceiling``, where the dataset can draw the ground truth."""
    lines = ceiling_rows(rows, {name: facts.sampling for name, facts in configs.items()}, resampling)
    if lines:
        write_table(out / "ceiling", "How near to the ground truth", pd.DataFrame(lines), CEILING_NOTES)


def ceiling_rows(
    rows: pd.DataFrame, sampling: dict[str, SamplingConfig], resampling: tuple[int, int]
) -> list[dict[str, object]]:
    """How near every config comes to the ground truth, each over the images that it shares with both ends; empty without one.

    ``resampling``: rounds and seed of the bootstrap.
    """
    base = [name for name in sampling if sampling[name].is_base]
    truth = [name for name in sampling if sampling[name].ground_truth == "rendered"]
    if not base or not truth:
        return []
    ends = (base[0], truth[0])
    shared = {name: shared_images(rows, list(dict.fromkeys([*ends, name]))) for name in dict.fromkeys(rows["config"])}
    return [ceiling_row(images, name, ends, *resampling) for name, images in shared.items()]


def shared_images(rows: pd.DataFrame, configs: list[str]) -> pd.DataFrame:
    """The rows of the configs, in that order, restricted to images that all of them have."""
    parts = [rows[rows["config"] == config] for config in configs]
    keys = [list(part[IMAGE].itertuples(index=False, name=None)) for part in parts]
    common = set.intersection(*map(set, keys))
    shared = [part[[key in common for key in names]] for part, names in zip(parts, keys, strict=True)]
    return pd.concat(shared, ignore_index=True)


def _with_costs(context: Context, table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The table with parameters before the scores, and concepts, images and costs after them."""
    configs, by_config = read_index(context).configs, rows.groupby("config")["concept"]
    table.insert(1, "params", [configs[name].parameters for name in table["config"]])
    table["concepts"] = by_config.nunique()[table["config"]].to_numpy()
    table["images"] = by_config.size()[table["config"]].to_numpy()
    return table.join(read_costs(context), on="config")


def run_text(context: Context) -> str:
    """What the tables are of, as JSON: the profile's name (null where it is not recorded), the base model, its resolution and dtype."""
    settings, base = context.data / "settings.yaml", context.profile.base
    name = read_yaml(settings, dict[str, Any], "run persres run").get("profile") if settings.exists() else None
    return json.dumps({"profile": name} | base.model_dump(include={"model", "resolution", "dtype"}), indent=1) + "\n"


def metrics_text(table: pd.DataFrame) -> str:
    """The headline scores as JSON, config -> score -> mean, for ``dvc metrics show`` and ``dvc exp show``; null where there is none."""
    columns = [name for name in HEADLINE_SCORES if name in table]
    rows = {
        row["config"]: {name: None if pd.isna(row[name]) else round(float(row[name]), 6) for name in columns}
        for _, row in table.iterrows()
    }
    return json.dumps(rows, indent=1) + "\n"


def paper_table(table: pd.DataFrame, name: str, titles: dict[str, str], model: str) -> pd.DataFrame:
    """The table with the paper's row titles and, for the paper's base model, the paper's figures."""
    table = table.set_index("config").loc[list(titles)].reset_index()
    if any(config != title for config, title in titles.items()):
        table.insert(1, "row", list(titles.values()))
    if model == MODEL and name in PAPER:
        for i, score in enumerate(PAPER_SCORES):
            table[f"paper {score}"] = [PAPER[name][t][i] if t in PAPER[name] else float("nan") for t in titles.values()]
    return table


def _pairs(context: Context, names: list[str], configs: dict[str, ConfigFacts]) -> list[tuple[str, str]]:
    """Config pairs to compare: each against the base model, LAG against the same variant without it, and the rows of a paper
    table against its row "Ours" (its first row where there is none)."""
    sampling = {name: configs[name].sampling for name in names}
    base = [name for name in names if sampling[name].is_base][:1]
    pairs = [(name, base[0]) for name in names if base and name != base[0]]
    for lag in (name for name in names if sampling[name].lag):
        plain = [n for n in names if not sampling[n].lag and sampling[n].variant == sampling[lag].variant]
        pairs += [(lag, name) for name in plain[:1]]
    for titles in context.profile.tables.rows.values():
        ours = next((name for name, title in titles.items() if title == "Ours"), next(iter(titles)))
        pairs += [(name, ours) for name in titles if name not in (ours, *base)]
    return list(dict.fromkeys(pairs))
