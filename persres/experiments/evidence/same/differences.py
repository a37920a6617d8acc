"""How far two published folders differ: one row for everything that both hold, whatever it is.

- ``tensors``: what was learned, each by the Frobenius norm of its difference over that of the older one.
- ``pictures``: mean absolute difference of a picture, in levels of 8 bits.
- ``masks``: the same of LAG's masks, in shares of a mask that is all on. A mask is cut at a threshold, so a pixel whose attention lies on it flips
  by a rounding, and moves a step's mask by one pixel.
- ``rows``: every number of every row: scores, where masks lie, losses, claims.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.torch import load_file

from persres.errors import PersresError
from persres.images import unzip_bytes

KEYS = ["method", "concept", "prompt", "image"]
LABELS = {*KEYS, "seed", "spec_hash"}  # of a row; its other numbers are compared
FILES = ("scores/scores.parquet", "rows/*.parquet")


def differences(older: Path, today: Path) -> pd.DataFrame:
    """Columns ``kind``, ``method`` (or variant), ``what`` (the very tensor, picture or row), ``column`` (of rows) and ``value``: what is of
    today minus what is older for rows, a distance for the rest; 0 only where both are the same to the bit. Variants and methods that one of
    both lacks are left out. Raises PersresError naming the first thing of the others that only one of both has, and where there is nothing."""
    found = [*_tensors(older, today), *_pictures(older, today), *_rows(older, today)]
    if not found:
        raise PersresError(f"{older} and {today} share nothing to compare")
    return pd.DataFrame(found, columns=["kind", "method", "what", "column", "value"])


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many tensors, pictures, masks and rows were compared."""
    things = table.drop_duplicates(["kind", "method", "what"])
    return {kind: int(n) for kind, n in things["kind"].value_counts(sort=False).items()}


def _shared(older: Path, today: Path, pattern: str) -> Iterator[tuple[str, Path, Path]]:
    """Files of variants or methods that both have, with that name."""
    for folder in sorted({path.parent for path in older.glob(pattern)}):
        other = today / folder.relative_to(older)
        if not other.exists():
            continue
        one, two = ({path.name for path in f.glob(Path(pattern).name)} for f in (folder, other))
        _same_names(one, two, folder.name)
        yield from ((folder.name, folder / name, other / name) for name in sorted(one))


def _same_names(one: set, two: set, where: str) -> None:
    if one != two:
        first = min(map(str, one ^ two))
        raise PersresError(f"{where}: only one of both checkouts has {first}: measure again")


def _tensors(older: Path, today: Path) -> Iterator[tuple]:
    for variant, one, two in _shared(older, today, "learned/*/*.safetensors"):
        first, second = load_file(one), load_file(two)
        _same_names(set(first), set(second), f"{variant}/{one.name}")
        for key, before in first.items():
            after = second[key]
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise PersresError(f"{variant}/{one.name}: {key} has another shape or type: measure again")
            yield "tensors", variant, f"{one.stem}: {key}", "", _distance(before, after)


def _distance(before, after) -> float:
    """Relative; infinite where something came of nothing, or where one is no number."""
    if before.equal(after):
        return 0.0
    apart, whole = (after.double() - before.double()).norm().item(), before.double().norm().item()
    return apart / whole if whole and np.isfinite(apart) else np.inf


def _pictures(older: Path, today: Path) -> Iterator[tuple]:
    for method, one, two in _shared(older, today, "samples/*/*.zip"):
        first, second = unzip_bytes(one), unzip_bytes(two)
        _same_names(set(first), set(second), f"{method}/{one.name}")
        for name, before in first.items():
            mask = "mask" in name
            levels = 0.0 if before == second[name] else _levels(before, second[name])
            yield "masks" if mask else "pictures", method, f"{one.stem}: {name}", "", levels / 255 if mask else levels


def _levels(before: bytes, after: bytes) -> float:
    one, two = (np.asarray(Image.open(io.BytesIO(data))).astype(float) for data in (before, after))
    return float(np.abs(one - two).mean()) if one.shape == two.shape else np.inf


def _rows(older: Path, today: Path) -> Iterator[tuple]:
    for path in sorted(path for pattern in FILES for path in older.glob(pattern)):
        if not (today / path.relative_to(older)).exists():
            raise PersresError(f"only one of both checkouts has {path.name}: measure again")
        one, two = (pd.read_parquet(p).set_index(KEYS).sort_index() for p in (path, today / path.relative_to(older)))
        both = set(one.index.unique("method")) & set(two.index.unique("method"))
        one, two = (table[table.index.get_level_values("method").isin(both)] for table in (one, two))
        _same_names(set(one.index), set(two.index), path.name)
        for column in one.select_dtypes("number").columns.difference(LABELS, sort=False):
            yield from _column(path.stem, column, one[column], two[column])


def _column(file: str, column: str, before: pd.Series, after: pd.Series) -> Iterator[tuple]:
    """A number where the other has none is infinitely far."""
    none, neither = before.isna() ^ after.isna(), before.isna() & after.isna()
    for key, value in (after - before).mask(none, np.inf)[~neither].items():
        yield "rows", f"{file}, {key[0]}", ", ".join(map(str, key[1:])), column, float(value)
