"""``persres diff v2 v3``: the settings and scores that differ between two versions."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from persres.config.extends import extended
from persres.config.legacy import translate
from persres.errors import PersresError
from persres.untrusted.documents import parse_yaml, read_csv
from persres.untrusted.text import printable
from persres.versions.repository import Repository

TABLES, MAIN = "data/tables", "data/tables/table1.csv"
LONGEST_LINE = 2000
FIX = "name another version, or ask who published it"


class _Params(BaseModel):
    """params.yaml of any version: the selected profile, and its settings under its name."""

    model_config = ConfigDict(extra="allow")

    profile: str


def differences(before: str, after: str, repository: Repository) -> dict[str, Any]:
    """``settings``: key -> [before, after] of the profile that each ran; ``scores``: config -> score -> [before, after], means of table 1.

    Raises PersresError if a version or its table can't be read.
    """
    old, new = _settings(repository, before), _settings(repository, after)
    changed = {key: [old.get(key), new.get(key)] for key in sorted(old | new) if old.get(key) != new.get(key)}
    return {"versions": [before, after], "settings": changed, "scores": _scores(repository, before, after)}


def _settings(repository: Repository, rev: str) -> dict[str, Any]:
    """Settings by their present names."""
    name = f"params.yaml of {rev}"
    params = parse_yaml(repository.text(rev, "params.yaml"), _Params, name, FIX)
    profiles = params.model_extra or {}
    settings = extended(profiles, params.profile, name) if params.profile in profiles else None
    if not isinstance(settings, dict):
        raise PersresError(f"{name} has no settings of its profile {printable(params.profile, 100)}; {FIX}")
    return {"profile": params.profile} | _flat(translate(settings))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    entries = (_flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
    return {key: inner for entry in entries for key, inner in entry.items()}


def _scores(repository: Repository, before: str, after: str) -> dict[str, dict[str, list[float | None]]]:
    old, new = (main_table(repository, rev) for rev in (before, after))
    scores = {name: old.get(name, {}) | new.get(name, {}) for name in dict.fromkeys([*old, *new])}
    return {c: {s: [old.get(c, {}).get(s), new.get(c, {}).get(s)] for s in known} for c, known in scores.items()}


def main_table(repository: Repository, rev: str) -> dict[str, dict[str, float | None]]:
    """The means of table 1 by config and score. Raises PersresError if the version has none."""
    import pandas as pd

    file = next((file for file in repository.files(rev, TABLES) if file.path == MAIN), None)
    if file is None:
        raise PersresError(f"{rev} has no {MAIN}")
    table = read_csv(repository.read(rev, file), dict[str, Any], FIX)
    table = table.set_index(table.columns[0])
    scores = [column for column in table if f"{column}_low" in table]  # each score has an interval
    if not scores:
        raise PersresError(f"{MAIN} of {rev} has no scores; {FIX}")
    for column in scores:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return {
        str(config): {score: None if pd.isna(row[score]) else float(row[score]) for score in scores}
        for config, row in table.iterrows()
    }


def as_text(changes: dict[str, Any]) -> str:
    """Lines for people."""
    before, after = changes["versions"]
    settings = [f"  {key}: {_short(old)} -> {_short(new)}" for key, (old, new) in changes["settings"].items()]
    lines = [f"settings, {before} -> {after}:", *(settings or ["  the same"])]
    lines.append(f"scores (means of table 1), {before} -> {after}:")
    for config, scores in changes["scores"].items():
        parts = [f"{name} {_number(a)} -> {_number(b)}" for name, (a, b) in scores.items() if (a, b) != (None, None)]
        lines.append(f"  {config}: {', '.join(parts)}")
    return "\n".join(printable(line, LONGEST_LINE) for line in lines)


def as_json(changes: dict[str, Any]) -> str:
    """The same for scripts."""
    return json.dumps(changes, indent=1, default=str)  # YAML has dates, bytes and sets too


def _short(value: Any) -> str:
    return "absent" if value is None else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
