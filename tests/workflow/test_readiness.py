"""`persres repro --profile`: what is checked before a run, and that nothing changes where a check fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from persres.cli.main import main
from persres.doctor import Finding
from persres.errors import PersresError
from persres.methods.common.registry import load_profile, make_profile
from persres.planning.estimate import Line
from persres.reproduction import readiness
from persres.reproduction.readiness import Planned, check_ready

OK = Finding("x", "ok", "fine")


def planned(tmp_path: Path, hours: float = 0.1, size: int = 0, **sections) -> Planned:
    settings = make_profile(
        {"fetch": {"dataset": "miniworld"}, "base": {"model": "package:miniworld/weights/sd", "resolution": 64}}
        | sections
    )
    return Planned("mine", settings, tmp_path / "work", [Line("fetch", 10), Line("sample", 1, 1, hours, size)])


@pytest.fixture
def passing(monkeypatch):
    """Every check passes; a test breaks one."""
    for name in ("_gpu", "_disk", "_dataset", "_models"):
        monkeypatch.setattr(readiness, name, lambda planned: OK)
    return monkeypatch


def test_a_gpu_is_needed_at_a_real_models_size(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    states = {
        (resolution, device): readiness._gpu(
            planned(tmp_path, base={"resolution": resolution}, runtime={"device": device})
        ).state
        for resolution in (64, 512)
        for device in ("auto", "cuda:1", "cpu")
    }
    assert [key for key, state in states.items() if state == "fails"] == [(512, "auto"), (512, "cuda:1")]


@pytest.mark.parametrize(("free", "state"), [(10**12, "ok"), (7 * 10**9, "fails"), (0, "fails")])
def test_the_disk_holds_the_run_and_dvcs_cache(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr("persres.reproduction.readiness.shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    finding = readiness._disk(planned(tmp_path, size=5 * 10**9))
    assert finding.state == state and "up to 7.5 GB needed" in finding.says


@pytest.mark.parametrize("dataset", ["customconcept101", "dreambooth"])
def test_a_dataset_is_there_or_can_be_fetched(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(readiness, "_unreachable", lambda url: "HTTP 404")
    folder = tmp_path / "files"
    run = planned(tmp_path, fetch={"dataset": dataset, "folder": str(folder)})
    finding = readiness._dataset(run)
    assert finding.state == "fails" and "HTTP 404" in finding.says and str(folder) in finding.fix
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    assert readiness._dataset(run).state == "ok"
    monkeypatch.setattr(readiness, "_unreachable", lambda url: None)
    assert (
        readiness._dataset(planned(tmp_path, fetch={"dataset": dataset, "folder": str(tmp_path / "none")})).state
        == "ok"
    )


def test_a_model_that_the_hub_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "_unreachable", lambda url: "HTTP 401")
    finding = readiness._models(planned(tmp_path, base={"model": "someone/gated"}))
    assert finding.state == "fails" and "someone/gated" in finding.says and "licence" in finding.fix


@pytest.mark.parametrize("failing", [["_gpu"], ["_disk", "_models"], ["_gpu", "_disk", "_dataset", "_models"]])
def test_every_failed_check_is_in_one_message(tmp_path, passing, failing):
    for name in failing:
        passing.setattr(readiness, name, lambda planned, name=name: Finding(name[1:], "fails", "bad", f"repair {name}"))
    with pytest.raises(PersresError, match="profile mine is not ready") as error:
        check_ready(planned(tmp_path), yes=True)
    assert all(f"-> repair {name}" in str(error.value) for name in failing) and "nothing was changed" in str(
        error.value
    )


@pytest.mark.parametrize(("hours", "size"), [(2286, 0), (0.5, 4 * 10**12), (30, 200 * 10**9)])
def test_a_long_run_asks_for_yes(tmp_path, passing, hours, size):
    with pytest.raises(PersresError, match=r"add --yes \(make repro PROFILE=mine YES=1\)"):
        check_ready(planned(tmp_path, hours, size), yes=False)
    assert "fine" in check_ready(planned(tmp_path, hours, size), yes=True)
    assert "fine" in check_ready(planned(tmp_path), yes=False), "a short one does not"


def test_a_refused_profile_leaves_every_file(repo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readiness, "_unreachable", lambda url: "ConnectionError")
    assert main(["repro", "--profile", "paper"]) == 1
    assert "run in a clone" in capsys.readouterr().err
    Path("dvc.yaml").write_text("stages: {}\n")
    Path("params.yaml").write_text((repo / "params.yaml").read_text())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    assert main(["repro", "--profile", "table1", "--yes"]) == 1
    output = capsys.readouterr()
    assert "GPU-hours" in output.out and "table1 is not ready" in output.err
    assert main(["repro", "--profile", "none"]) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_the_profile_of_table_1_is_the_papers_without_its_ablations(repo):
    table1, paper = (load_profile(repo / "params.yaml", name) for name in ("table1", "paper"))
    assert list(table1.tables.rows) == ["table1"] and table1.tables.rows["table1"] == paper.tables.rows["table1"]
    assert set(table1.sample.configs) == set(table1.tables.rows["table1"])
    for name in table1.sample.configs:
        assert table1.sample.config(name) == paper.sample.config(name)


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ([], ["dvc repro", "persres show"]),
        (["PROFILE=paper"], ["persres repro --profile paper"]),
        (["PROFILE=paper", "YES=1"], ["persres repro --profile paper --yes"]),
    ],
)
def test_make_repro(repo, given, lines):
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PROFILE", "YES")  # of the make that runs the tests
    env = {name: value for name, value in os.environ.items() if name not in outer}
    listed = subprocess.run(
        ["make", "-n", "repro", *given], cwd=repo, capture_output=True, text=True, check=True, env=env
    )
    assert [line.strip() for line in listed.stdout.splitlines()][-len(lines) :] == lines


@pytest.mark.parametrize("command", ["repro", "preflight", "settings", "estimate", "run"])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("profile: a\na: {}\n", "no profile 'none'"),
        ("profile: a\nnone: {extends: b}\n", "must name one other profile"),
        ("profile: [a]\n", "the key 'profile'"),
    ],
)
def test_a_wrong_profile_is_refused_before_torch_is_imported(tmp_path, command, params, message):
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(params)
    code = "import sys; from persres.cli.main import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--profile", "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_a_report_that_is_a_folder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["preflight", "--profile", "mini", "--out", "."]) == 1
    assert "--out . is a folder" in capsys.readouterr().err
