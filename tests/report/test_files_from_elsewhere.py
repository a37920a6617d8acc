"""Costs, measured rates, tables and scores that another machine wrote: one sentence for what is none, and no effects of their text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from persres.errors import PersresError
from persres.planning.estimate import read_measured_seconds
from persres.report.terminal import show_difference, show_tables
from persres.units.costs import read_costs
from persres.versions import compare

NO_TABLES = [b"", b"\0", b"\xff\xfe\xff", b"a,b\n1,2\n", b"[1]", b'"', b"a\n" * 3 + b'"x', b"PAR1", b"\x1b[31m\n1\n"]


def one_sentence(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert text.isprintable() and len(text) < 1500 and ";" in text


COSTS = [
    b"variant,concept,seconds,class_images_seconds,peak_mib\nours,a,many,0,1\n", b"variant,concept,seconds,peak_mib\nours,a,1,1\n",
    b"variant,concept,seconds,class_images_seconds,peak_mib\n,a,1,0,1\n", b"variant,concept,seconds,class_images_seconds,peak_mib\nours,a,1,0,\x1b[31m\n",
]  # fmt: skip


@pytest.mark.parametrize("data", [*NO_TABLES, *COSTS], ids=lambda data: repr(data[-20:]))
def test_costs_that_are_none(tmp_path, data):
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "train.csv").write_bytes(data)
    with pytest.raises(PersresError, match=r"train\.csv") as error:
        read_costs(SimpleNamespace(data=tmp_path))
    one_sentence(error)


def test_names_of_variants_stay_text(tmp_path):
    """007 is no number, here and in the other table."""
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "train.csv").write_text(
        "variant,concept,seconds,class_images_seconds,peak_mib\n007,a,3,0,5\n"
    )
    (tmp_path / "costs" / "sample.csv").write_text("config,concept,variant,image_seconds\nx,a,007,2\n")
    assert read_costs(SimpleNamespace(data=tmp_path)).loc["x", "train_s"] == 3


RATES = {"train_step_s": 0.2, "train_batch": 2, "image_s": {"1": 2.0}, "image_lag_s": {"4": 1.6}, "sample_steps": 25}
NO_RATES = [
    b"", b"\xff", b"[" * 100_000, b'{"train_step_s": NaN}', b"null",
    *(json.dumps(RATES | change).encode() for change in (
        {"train_step_s": float("nan")}, {"train_step_s": float("inf")}, {"train_batch": 0}, {"image_s": {}}, {"image_s": {"1": None}}, {"image_lag_s": [1]},
        {"sample_steps": -1}, {"device": ["x"]}, {"train_step_s": "\x1b[31m"}, {"sample_steps": 10**400},
    )),
]  # fmt: skip


@pytest.mark.parametrize("data", NO_RATES, ids=lambda data: repr(data[:40]))
def test_rates_that_are_none(tmp_path, data):
    (tmp_path / "gpu.json").write_bytes(data)
    with pytest.raises(PersresError, match=r"gpu\.json does not hold measured rates") as error:
        read_measured_seconds(tmp_path / "gpu.json")
    one_sentence(error)


def test_the_name_of_a_device_is_printable(tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps(RATES | {"device": "\x1b]0;title\x07\u202e"}))
    assert read_measured_seconds(tmp_path / "gpu.json").source.isprintable()


HEADER = "config,concepts,images,params,clip_text\n"
TABLES = [
    HEADER + row
    for row in ("", "a,x,1,1,1\n", "a,1,1,1,text\n", "a,inf,1,1,1\n", "a,,1,1,1\n", "a,1,1e400,1,1\n", "a,1,1,nan,1\n")
]


@pytest.mark.parametrize("data", [*NO_TABLES, *(text.encode() for text in TABLES)], ids=lambda data: repr(data[-20:]))
def test_tables_that_are_none(tmp_path, data):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table1.csv").write_bytes(data)
    with pytest.raises(PersresError, match=r"table1\.csv") as error:
        show_tables(tmp_path)
    one_sentence(error)


@pytest.mark.parametrize("name", ["[/]", "[red]x", "\x1b[31mx", "[link=http://x]y[/link]", "\u202ex"])
def test_names_in_tables_are_literal(tmp_path, capsys, monkeypatch, name):
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"config": [name], "concepts": 1, "images": 1, "params": 1, "clip_text": 0.5}).to_csv(
        tmp_path / "tables" / "table1.csv", index=False
    )
    show_tables(tmp_path)
    text = capsys.readouterr().out
    assert name.encode("unicode_escape").decode()[:5] in text and text.replace("\n", "").isprintable()


SCORES = [
    pd.DataFrame({"a": [1]}), pd.DataFrame({"config": ["a"]}), pd.DataFrame({"config": ["a", "b"], "concept": ["x", "x"], "clip_text": ["t", "u"]}),
]  # fmt: skip


@pytest.mark.parametrize("content", [*NO_TABLES, *SCORES], ids=lambda content: repr(content)[:15])
def test_scores_that_are_none(tmp_path, content):
    path = tmp_path / "scores" / "scores.parquet"
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else content.to_parquet(path)
    with pytest.raises(PersresError, match=r"scores\.parquet") as error:
        show_difference(tmp_path, "a", "b")
    one_sentence(error)


def test_configs_of_strange_names_are_compared(tmp_path, capsys, monkeypatch):
    path, name = tmp_path / "scores" / "scores.parquet", "[/b]\x1b[31m"
    path.parent.mkdir()
    pd.DataFrame({"config": [name, "b"], "concept": ["x", "x"], "clip_text": [0.5, 0.25]}).to_parquet(path)
    show_difference(tmp_path, name, "b")
    text = capsys.readouterr().out
    assert "[/b]" in text and text.replace("\n", "").isprintable()


class Version:
    """A repository whose versions have this params.yaml and this table."""

    def __init__(self, folder: Path, params: str, table: bytes) -> None:
        self.params, self.table = params, folder / "table.csv"
        self.table.write_bytes(table)

    def text(self, rev: str, path: str) -> str:
        return self.params

    def files(self, rev: str, folder: str) -> list:
        return [SimpleNamespace(path=compare.MAIN)]

    def read(self, rev: str, file: object) -> Path:
        return self.table


GOOD = b"config,clip_text,clip_text_low\nours,0.7,\n"


def test_any_settings_and_scores_are_compared_as_text_and_json(tmp_path):
    params = 'profile: p\np: {a: 2020-01-01, b: !!binary aGk=, c: !!set {x}, d: .nan, "\\e[31m": "\\e]0;x\\a", e: [1, {f: g}], 5: 6}'
    table = b"config,clip_text,clip_text_low\n\x1b[31mours,0.7,\n7,text,\n,1,\n"
    changes = compare.differences("v1", "v2", Version(tmp_path, params, table))
    assert changes["scores"]["7"]["clip_text"] == [None, None]
    changes["settings"]["odd"] = ["\x1b[31m", pd.Timestamp(0).date()]
    assert compare.as_text(changes).replace("\n", "").isprintable() and json.loads(compare.as_json(changes))


def test_settings_that_a_version_inherits_are_compared(tmp_path):
    params = "profile: p\nq: {train: {lr: 1, steps: 2}}\np: {extends: q, train: {lr: 3}}"
    changes = compare.differences("v1", "v2", Version(tmp_path, params, GOOD))
    settings = compare._settings(Version(tmp_path, params, GOOD), "v1")
    assert settings == {"profile": "p", "train.lr": 3, "train.steps": 2} and changes["settings"] == {}


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xfe\xff", b'"'], ids=repr)
def test_a_table_of_a_version_that_is_none(tmp_path, data):
    with pytest.raises(PersresError, match=r"table1?\.csv") as error:
        compare.differences("v1", "v2", Version(tmp_path, "profile: p\np: {}", data))
    one_sentence(error)


@pytest.mark.parametrize(
    "params",
    [
        "",
        "5",
        "[]",
        "profile: 5",
        "profile: [p]",
        "profile: p",
        "profile: p\np: 5",
        "p: {}",
        "profile: p\np: {extends: q}",
        "profile: p\np: {extends: p}",
        "profile: p\np: {extends: [q]}\nq: {}",
        "{",
        "profile: p\np: {a: 0x" + "f" * 5000 + "}",
    ],
)
def test_settings_of_a_version_that_are_none(tmp_path, params):
    with pytest.raises(PersresError, match=r"params\.yaml of v1") as error:
        compare.differences("v1", "v2", Version(tmp_path, params, GOOD))
    one_sentence(error)
