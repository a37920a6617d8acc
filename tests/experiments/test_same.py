"""Same: what two checkouts computed is compared; within tolerances, and only then, older figures stand for today's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from persres.errors import PersresError
from persres.experiments.evidence.provenance import CHAIN_CODE, EVIDENCE_CODE, code_line, code_of, stands_for
from persres.experiments.evidence.same import carry, sides
from persres.experiments.evidence.same.carry import Runs, entry, made_there, run_same
from persres.experiments.evidence.same.differences import counts, differences
from persres.experiments.evidence.same.subjects import LEFT_OUT, PROFILES, Subject, cut_down, names_of, subject_named
from persres.experiments.evidence.same.tolerances import check, measured, tolerance, worst_rows
from persres.experiments.extensions.study import NAMES, blocks_of, study_named
from persres.images import png_bytes, zip_bytes
from persres.methods.common.registry import load_profile

ROW = {"method": "ours", "concept": "mug", "prompt": "a {}", "image": 0, "dino": 0.5, "background_change": 0.02}
EVIDENCE = subject_named("evidence")


def picture(level: float) -> bytes:
    return png_bytes(Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)))


def learn(folder: Path, up: float = 1.0) -> None:
    save_file({"a.up": torch.full((2,), up), "a.down": torch.ones(2)}, folder / "learned" / "ours" / "mug.safetensors")


def draw(folder: Path, level: int = 100, mask: int = 255) -> None:
    files = {f"00_{i:03d}.png": picture(100) for i in range(39)} | {"00_039.png": picture(level)}
    (folder / "samples" / "ours" / "mug.zip").write_bytes(zip_bytes(files | {"masks/00_000.png": picture(mask)}))


def score(folder: Path, **changed) -> None:
    rows = [ROW | changed, ROW | {"image": 1}, ROW | {"method": "base", "background_change": np.nan}]
    pd.DataFrame(rows).assign(spec_hash=folder.name).to_parquet(folder / "scores" / "scores.parquet")


def published(folder: Path) -> Path:
    for name in ("learned/ours", "samples/ours", "scores", "rows"):
        (folder / name).mkdir(parents=True)
    learn(folder)
    draw(folder)
    score(folder)
    row = {"method": "mid_block", "concept": "both", "prompt": "nameable", "image": 200, "auc": 0.9}
    pd.DataFrame([row]).to_parquet(folder / "rows" / "localisation.parquet")
    return folder


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    older = published(tmp_path / "older")
    return older, Path(shutil.copytree(older, tmp_path / "today"))


def refused(older: Path, today: Path) -> str:
    with pytest.raises(PersresError) as said:
        check("evidence", measured(differences(older, today)))
    return str(said.value)


def test_what_is_the_same_is_counted_and_differs_by_nothing(both):
    score(both[1])  # by another spec's hash, which is no number
    table = differences(*both)
    assert counts(table) == {"tensors": 2, "pictures": 40, "masks": 1, "rows": 4}
    assert (table["value"] == 0).all(), "base pictures have no background change, and none is none"
    check("evidence", measured(table))


def test_every_kind_is_measured(both):
    _, today = both
    learn(today, 1.0005)
    draw(today, 108, 254)
    score(today, dino=0.503)
    found = {measure: value for measure, (value, _) in measured(differences(*both)).items()}
    assert found["tensors, worst"] == pytest.approx(5e-4, rel=1e-3) and found["tensors, mean"] == pytest.approx(
        2.5e-4, rel=1e-3
    )
    assert found["pictures, levels"] == pytest.approx(8 / 40) and found["pictures, share beyond 2 levels"] == 1 / 40
    assert found["masks"] == pytest.approx(1 / 255) and found["dino"] == pytest.approx(0.0015)
    assert worst_rows(differences(*both))["dino"] == pytest.approx(0.003), "one row is recorded, means are judged"
    check("evidence", measured(differences(*both)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda today: learn(today, 1.01), r"tensors, mean differs by 0.005 \(ours/mug: a.up\), more than 0.001"),
        (lambda today: draw(today, 130), "pictures, levels differs by 0.75 (ours)"),
        (lambda today: draw(today, mask=250), "masks differs by 0.0196 (ours), more than 0.005"),
        (lambda today: score(today, dino=0.505), "dino differs by 0.0025 (scores, ours), more than 0.002"),
        (lambda today: score(today, background_change=0.0205), "background_change differs by 0.00025 (scores, ours)"),
        (lambda today: score(today, dino=np.nan), "dino differs by inf"),
    ],
)
def test_what_differs_too_much_is_named(both, change, said):
    change(both[1])
    assert said.replace("\\", "") in refused(*both)


def test_many_pictures_a_little_off_are_too_many(both):
    files = {f"00_{i:03d}.png": picture(103 if i < 3 else 100) for i in range(40)} | {"masks/00_000.png": picture(255)}
    (both[1] / "samples" / "ours" / "mug.zip").write_bytes(zip_bytes(files))
    assert "share beyond 2 levels differs by 0.075 (ours/mug: 00_000.png)" in refused(*both)


def test_opposite_differences_of_one_method_cancel_but_not_those_of_two(both):
    older, today = both
    rows = pd.DataFrame(
        [ROW | {"dino": 0.51}, ROW | {"image": 1, "dino": 0.49}, ROW | {"method": "base", "background_change": np.nan}]
    )
    rows.to_parquet(today / "scores" / "scores.parquet")
    check("evidence", measured(differences(older, today)))
    rows.assign(method=["ours", "base", "base"], image=[0, 0, 1]).to_parquet(today / "scores" / "scores.parquet")
    with pytest.raises(PersresError, match="only one of both checkouts has"):
        differences(older, today)


def test_what_only_one_has_is_named(both):
    older, today = both
    shutil.copy(today / "learned" / "ours" / "mug.safetensors", today / "learned" / "ours" / "car.safetensors")
    with pytest.raises(PersresError, match=r"ours: only one of both checkouts has car.safetensors"):
        differences(older, today)
    (today / "learned" / "ours" / "car.safetensors").unlink()
    (today / "learned" / "new_variant").mkdir()  # what older code had no name for is nothing to compare
    save_file({"a.up": torch.ones(2), "a.down": torch.ones(3)}, today / "learned" / "ours" / "mug.safetensors")
    with pytest.raises(PersresError, match=r"a.down has another shape or type"):
        differences(older, today)
    (today / "rows" / "localisation.parquet").unlink()
    learn(today)
    with pytest.raises(PersresError, match=r"only one of both checkouts has localisation.parquet"):
        differences(older, today)


def test_nothing_in_common_proves_nothing(tmp_path):
    with pytest.raises(PersresError, match="nothing to compare"):
        differences(tmp_path, tmp_path)


def test_bad_calls_are_named(tmp_path, repo):
    with pytest.raises(PersresError, match="no committed figures of profile 'mini'"):
        names_of(["mini"], [])
    with pytest.raises(PersresError, match="no part 'evidence'"):
        names_of([], ["evidence"])
    with pytest.raises(PersresError, match="no checkout of persres"):
        run_same(tmp_path, ("evidence",), tmp_path, tmp_path)
    with pytest.raises(PersresError, match="there are no figures of evidence to carry"):
        run_same(repo, ("evidence",), tmp_path, tmp_path)
    assert names_of([], []) == ("evidence",) and names_of(["tables"], ["all"]) == ("tables", *NAMES)


@pytest.mark.parametrize("name", [*PROFILES, *NAMES])
def test_the_cut_down_profile_keeps_every_variant_and_way_to_draw(repo, tmp_path, name):
    profile = subject_named(name).profile
    cut, whole = load_profile(cut_down(repo, profile, tmp_path), profile), load_profile(repo / "params.yaml", profile)
    added = (
        set() if any(m.get("variant") for m in whole.sample.methods.values()) else {"learned"}
    )  # else no variant is drawn with
    assert set(cut.sample.methods) == set(whole.sample.methods) - set(LEFT_OUT) | added
    assert set(cut.train.variants) == set(whole.train.variants)
    assert {v.steps for v in cut.train.variants.values()} == {12} and cut.base == whole.base
    for method in set(cut.sample.methods) - added:
        left = {"steps", "images_per_prompt", "prompts"}
        assert cut.sample.method(method).model_dump(exclude=left) == whole.sample.method(method).model_dump(
            exclude=left
        )
    assert cut_down(repo, profile, tmp_path, 3).read_text() != cut_down(repo, profile, tmp_path).read_text()


@pytest.mark.parametrize("name", [*PROFILES, *NAMES])
def test_every_subject_has_its_figures_and_its_script(repo, name):
    subject = subject_named(name)
    assert (repo / "data" / subject.path).exists()
    assert subject.script is None or (sides.FEW / f"{subject.script}.py").exists()
    assert subject.chained or subject.script, "something must be run"


def test_older_code_must_be_what_made_the_figures():
    assert made_there({"code": "made"}, "made", EVIDENCE)
    assert made_there({"code": "made", "same": {"code": "bits", "compared": {}}}, "bits", EVIDENCE)
    assert not made_there({"code": "made", "same": {"code": "near", "largest": {}}}, "near", EVIDENCE)
    with pytest.raises(PersresError, match="were made by the code made, and that checkout has other"):
        made_there({"code": "made", "same": {"code": "near", "largest": {}}}, "other", EVIDENCE)


def test_what_was_carried_within_tolerances_is_carried_on_by_the_same_bits_alone(faked, repo, tmp_path, monkeypatch):
    near = {"code": "near", "compared": {}, "largest": {"dino": 1e-5}, "tolerance": {}, "control": {}}
    path = tmp_path / "out" / EVIDENCE.path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"of": {"code": "old", "same": near}}))
    monkeypatch.setattr(carry, "Runs", lambda _older, _work: faked)
    monkeypatch.setattr(carry, "digest_at", lambda _side, _subject: "near")
    monkeypatch.setattr(carry, "check_claims", lambda _root, _subject: None)
    run_same(repo, ("evidence",), tmp_path, tmp_path / "out")
    today = near | {"code": code_of(EVIDENCE_CODE), "through": ["near"]}
    assert json.loads(path.read_text()) == {"of": {"code": "old", "same": today}}, "what was found then still is"
    path.write_text(json.dumps({"of": {"code": "old", "same": near}}))
    learn(faked.lie["today"], 1 + 1e-6)
    faked.tables.clear()
    with pytest.raises(PersresError, match="not the same to the bit"):
        run_same(repo, ("evidence",), tmp_path, tmp_path / "out")


def test_what_makes_claims_must_be_the_same_text(repo, tmp_path):
    shutil.copytree(
        repo / "persres" / "evidence", tmp_path / "persres" / "evidence", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "persres" / "metrics").mkdir()
    shutil.copy(repo / "persres" / "metrics" / "summary.py", tmp_path / "persres" / "metrics")
    sides.check_claims(tmp_path, EVIDENCE)
    claims = tmp_path / "persres" / "evidence" / "claims.py"
    claims.write_text("# a comment makes nothing\n" + claims.read_text())
    sides.check_claims(tmp_path, EVIDENCE)
    claims.write_text(claims.read_text().replace("0.10", "0.09"))
    with pytest.raises(PersresError, match=r"persres.experiments.evidence.claims has changed"):
        sides.check_claims(tmp_path, EVIDENCE)


class Faked(Runs):
    """Both runs' results as they lie there, with what was asked for."""

    def __init__(self, older: Path, today: Path, control: Path | None = None) -> None:
        super().__init__(older, older)
        self.lie, self.asked = {"older": older, "today": today, "control": control}, []


@pytest.fixture
def faked(both, monkeypatch):
    runs = Faked(*both, both[0])

    def run_side(side, _subject: Subject, _work: Path) -> Path:
        runs.asked.append(side.name)
        return runs.lie[side.name]

    monkeypatch.setattr(carry, "run_side", run_side)
    return runs


def test_the_same_bits_need_no_control_and_are_said_to_be_the_same(faked):
    said = entry(EVIDENCE, faked, exact=True)
    assert said == {"code": code_of(EVIDENCE_CODE), "compared": {"tensors": 2, "pictures": 40, "masks": 1, "rows": 4}}
    assert faked.asked == ["older", "today"]
    line = code_line({"code": "old", "same": said}, EVIDENCE_CODE, "make evidence")
    assert "computes the same bits in a cut-down run of both: 2 tensors, 40 pictures" in line


def test_what_is_alike_is_recorded_with_its_tolerances_and_the_control(faked, tmp_path):
    learn(faked.lie["today"], 1.0005)
    faked.lie["control"] = published(tmp_path / "control")
    learn(faked.lie["control"], 1.0001)
    said = entry(EVIDENCE, faked)
    entry(EVIDENCE, faked)
    assert faked.asked == ["older", "today", "control"], "what shares a run is run once"
    assert (
        said["largest"]["tensors, mean"] == pytest.approx(2.5e-4, rel=1e-2)
        and said["tolerance"]["tensors, mean"] == 1e-3
    )
    assert said["control"]["largest"]["tensors, mean"] == pytest.approx(5e-5, rel=1e-2) and said["rows"]["dino"] == 0
    assert set(said["largest"]) == set(said["tolerance"]) == set(said["control"]["largest"])
    recorded = json.loads(json.dumps({"code": "old", "same": said}))
    assert stands_for(recorded, EVIDENCE_CODE) and not stands_for(recorded, CHAIN_CODE)
    line = code_line(recorded, EVIDENCE_CODE, "make evidence")
    assert "within stated tolerances" in line and "tensors, mean 0.00025 (tolerance 0.001, control 5e-05)" in line
    assert "narrower vector instructions" in line and "same bits" not in line


def test_exact_asks_for_the_same_bits(faked):
    learn(faked.lie["today"], 1 + 1e-6)
    with pytest.raises(PersresError, match=r"evidence: ours/mug: a.up is not the same to the bit"):
        entry(EVIDENCE, faked, exact=True)
    assert entry(EVIDENCE, faked)["largest"]["tensors, mean"] > 0


@pytest.mark.parametrize("name", ["evidence", "tables", "masks"])
def test_only_todays_digest_is_added_and_only_where_it_is_alike(faked, repo, tmp_path, monkeypatch, name):
    subject, out = subject_named(name), tmp_path / "out"
    path = out / subject.path
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"code": "old", "base": 1} if subject.key is None else {"base": 1, "of": {"code": "old"}})
    )
    monkeypatch.setattr(carry, "Runs", lambda _older, _work: faked)
    monkeypatch.setattr(carry, "digest_at", lambda _side, _subject: "old")
    monkeypatch.setattr(carry, "check_claims", lambda _root, _subject: None)
    before = path.read_text()
    learn(faked.lie["today"], 1.5)
    with pytest.raises(PersresError, match=f"{name}: tensors, mean differs by 0.25"):
        run_same(repo, (name,), tmp_path, out)
    assert path.read_text() == before, "what is refused records nothing"
    learn(faked.lie["today"], 1.0005)
    faked.tables.clear()
    run_same(repo, (name,), tmp_path, out)
    said = json.loads(path.read_text())
    provenance = said if subject.key is None else said["of"]
    assert said["base"] == 1 and provenance["code"] == "old" and stands_for(provenance, subject.modules)


@pytest.mark.parametrize("name", NAMES)
def test_a_parts_page_says_that_older_figures_stand(name):
    part = study_named(name)
    same = {"code": code_of(part.modules), "compared": {"pictures": 8}}
    line = blocks_of(part)["code"]({"of": {"code": "old", "same": same}})
    assert "computes the same bits" in line and "8 pictures" in line
    assert "run `persres beyond" in blocks_of(part)["code"]({"of": {"code": "old", "same": same | {"code": "other"}}})


def test_columns_have_tolerances_of_their_own():
    assert tolerance("dino") == 0.002 and tolerance("background_change") == 0.0002 and tolerance("stopped_after") == 0
