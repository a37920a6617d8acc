"""``persres diff v2 v3``: what two versions were set to, and what they score."""

from __future__ import annotations

import io
import json
from typing import Any

from persres.errors import PersresError
from persres.versions.repository import Repository

TABLES, MAIN = "data/tables", "data/tables/table1.csv"


def differences(before: str, after: str, repository: Repository) -> dict[str, Any]:
    """``settings``: key -> [before, after] of the profile that each ran; ``scores``: method -> score -> [before, after], the means of the
    main table. Raises PersresError where a version or its table can't be had."""
    old, new = _settings(repository, before), _settings(repository, after)
    changed = {key: [old.get(key), new.get(key)] for key in sorted(old | new) if old.get(key) != new.get(key)}
    return {"versions": [before, after], "settings": changed, "scores": _scores(repository, before, after)}


def _settings(repository: Repository, rev: str) -> dict[str, Any]:
    import yaml

    raw = yaml.safe_load(repository.text(rev, "params.yaml"))
    return {"profile": raw["profile"]} | _flat(raw[raw["profile"]])


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {where: value}
    return {
        k: v for key, inner in value.items() for k, v in _flat(inner, f"{where}.{key}" if where else str(key)).items()
    }


def _scores(repository: Repository, before: str, after: str) -> dict[str, dict[str, list[float | None]]]:
    old, new = (_table(repository, rev) for rev in (before, after))
    scores = {name: {**old.get(name, {}), **new.get(name, {})} for name in dict.fromkeys([*old, *new])}
    return {m: {s: [old.get(m, {}).get(s), new.get(m, {}).get(s)] for s in known} for m, known in scores.items()}


def _table(repository: Repository, rev: str) -> dict[str, dict[str, float | None]]:
    import pandas as pd

    file = next((file for file in repository.files(rev, TABLES) if file.path == MAIN), None)
    if file is None:
        raise PersresError(f"{rev} has no {MAIN}")
    table = pd.read_csv(io.BytesIO(repository.read(rev, file).read_bytes())).set_index("method")
    scores = [column for column in table if f"{column}_low" in table]  # each score has an interval
    return {
        method: {score: None if pd.isna(row[score]) else float(row[score]) for score in scores}
        for method, row in table.iterrows()
    }


def as_text(found: dict[str, Any]) -> str:
    """Lines for people."""
    before, after = found["versions"]
    lines = [f"settings, {before} -> {after}:"]
    lines += [f"  {key}: {_short(old)} -> {_short(new)}" for key, (old, new) in found["settings"].items()] or [
        "  the same"
    ]
    lines.append(f"scores (means of table 1), {before} -> {after}:")
    for method, scores in found["scores"].items():
        told = [
            f"{name} {_number(old)} -> {_number(new)}"
            for name, (old, new) in scores.items()
            if (old, new) != (None, None)
        ]
        lines.append(f"  {method}: {', '.join(told)}")
    return "\n".join(lines)


def as_json(found: dict[str, Any]) -> str:
    """The same for scripts."""
    return json.dumps(found, indent=1)


def _short(value: Any) -> str:
    return "absent" if value is None else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
