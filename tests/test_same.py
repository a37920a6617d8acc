"""Same bits: what two checkouts computed is compared to the bit, and only then do older figures stand for today's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.evidence.provenance import CHAIN_CODE, EVIDENCE_CODE, code_of, stands_for
from persres.evidence.same import _cut_down, _record, compare, run_same
from persres.images import zip_bytes
from persres.methods.common.registry import load_profile

ROW = {"method": "ours", "concept": "mug", "prompt": "a {}", "image": 0, "dino": 0.5, "spec_hash": "one"}


def published(folder: Path) -> Path:
    (folder / "learned" / "ours").mkdir(parents=True)
    (folder / "samples" / "ours").mkdir(parents=True)
    (folder / "scores").mkdir()
    save_file({"a.up": torch.ones(2), "a.down": torch.zeros(2)}, folder / "learned" / "ours" / "mug.safetensors")
    (folder / "samples" / "ours" / "mug.zip").write_bytes(
        zip_bytes({"00_000.png": b"picture", "masks/00_000.png": b"mask"})
    )
    pd.DataFrame([ROW]).to_parquet(folder / "scores" / "scores.parquet")
    (folder / "localisation.json").write_text('[{"auc": 0.9}]')
    return folder


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    older = published(tmp_path / "older")
    return older, Path(shutil.copytree(older, tmp_path / "today"))


def test_what_is_the_same_is_counted(both):
    older, today = both
    pd.DataFrame([ROW | {"spec_hash": "another"}]).to_parquet(today / "scores" / "scores.parquet")
    assert compare(older, today) == {"tensors": 2, "pictures": 2, "score rows": 1, "localisation rows": 1}


def test_one_bit_is_told_and_named(both):
    older, today = both
    save_file({"a.up": torch.ones(2) + 1e-7, "a.down": torch.zeros(2)}, today / "learned" / "ours" / "mug.safetensors")
    with pytest.raises(PersresError, match=r"ours/mug.safetensors: a.up is not the same"):
        compare(older, today)
    shutil.copy(older / "learned" / "ours" / "mug.safetensors", today / "learned" / "ours")
    (today / "samples" / "ours" / "mug.zip").write_bytes(
        zip_bytes({"00_000.png": b"picturE", "masks/00_000.png": b"mask"})
    )
    with pytest.raises(PersresError, match=r"ours/mug.zip: 00_000.png is not the same"):
        compare(older, today)
    shutil.copy(older / "samples" / "ours" / "mug.zip", today / "samples" / "ours")
    pd.DataFrame([ROW | {"dino": 0.5000001}]).to_parquet(today / "scores" / "scores.parquet")
    with pytest.raises(PersresError, match="scores are not the same"):
        compare(older, today)
    shutil.copy(older / "scores" / "scores.parquet", today / "scores")
    (today / "localisation.json").write_text('[{"auc": 0.8}]')
    with pytest.raises(PersresError, match="localisation is not the same"):
        compare(older, today)


def test_nothing_in_common_proves_nothing(both):
    older, today = both
    shutil.rmtree(today / "samples")
    with pytest.raises(PersresError, match="nothing to compare"):
        compare(older, today)


def test_bad_calls_are_named(tmp_path):
    with pytest.raises(PersresError, match="no committed figures of profile 'mini'"):
        run_same(tmp_path, "mini", tmp_path, tmp_path)
    with pytest.raises(PersresError, match="no checkout of persres"):
        run_same(tmp_path, "evidence", tmp_path, tmp_path)


@pytest.mark.parametrize("profile", ["evidence", "tables"])
def test_the_cut_down_profile_keeps_every_variant_and_method(repo, tmp_path, profile):
    cut, whole = load_profile(_cut_down(repo, profile, tmp_path), profile), load_profile(repo / "params.yaml", profile)
    assert set(cut.sample.methods) == set(whole.sample.methods) and set(cut.train.variants) == set(whole.train.variants)
    assert {v.steps for v in cut.train.variants.values()} == {12} and cut.base == whole.base
    for name in whole.sample.methods:
        left = {"steps", "images_per_prompt", "prompts"}
        assert cut.sample.method(name).model_dump(exclude=left) == whole.sample.method(name).model_dump(exclude=left)


def test_only_todays_digest_is_added(tmp_path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "rivals").mkdir()
    (tmp_path / "evidence" / "summary.json").write_text('{"base": 1, "of": {"code": "old"}}')
    (tmp_path / "rivals" / "settings.json").write_text('{"code": "old"}')
    for profile in ("evidence", "tables"):
        _record(tmp_path, profile, {"pictures": 3})
    said = json.loads((tmp_path / "evidence" / "summary.json").read_text())
    assert said["base"] == 1 and said["of"]["code"] == "old" and said["of"]["same"]["code"] == code_of(EVIDENCE_CODE)
    assert stands_for(said["of"], EVIDENCE_CODE) and stands_for(
        json.loads((tmp_path / "rivals" / "settings.json").read_text()), CHAIN_CODE
    )
