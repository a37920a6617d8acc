"""DVC's own commands on this repository's dvc.yaml and params.yaml: experiments, metrics and plots, with stages that only copy files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from persres.errors import PersresError
from persres.reproduction.repro import reproduce

STAGE = """import json, sys
from pathlib import Path
name = sys.argv[1]
if Path("fails_at").exists() and name == Path("fails_at").read_text():
    sys.exit(3)
settings = json.dumps(__import__("yaml").safe_load(Path("data/settings.yaml").read_text()))
for out in sys.argv[2:]:
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.suffix:
        folder.write_text("x\\n")
        continue
    folder.mkdir()
    (folder / "a.txt").write_text(settings)
    if name == "tables":
        ratio = json.loads(settings)["train"]["rank_ratio"]
        (folder / "metrics.json").write_text(json.dumps({"ours": {"clip_text": ratio, "dino": 0.5}}))
        (folder / "categories.csv").write_text("config,clip_text,clip_image,dino,category\\nours,0.1,0.2,0.3,toy\\n")
        (folder / "groups.csv").write_text("prompt_group,config,clip_text,dino\\nstyle,ours,0.1,0.3\\n")
"""


@pytest.fixture(scope="module")
def checkout(repo, tmp_path_factory) -> Path:
    """This repository's stages, settings and DVC configuration; only the stage ``settings`` runs its real command."""
    folder = tmp_path_factory.mktemp("experiments")
    pipeline = yaml.safe_load((repo / "dvc.yaml").read_text())
    for name, stage in pipeline["stages"].items():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("persres/")]
        if name != "settings":
            stage["cmd"] = f"python stage.py {name} {' '.join(stage['outs'])}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (folder / "stage.py").write_text(STAGE)
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(repo / name, folder)
    shutil.copytree(repo / "data", folder / "data", ignore=lambda path, names: [n for n in names if n != ".gitignore"])
    command(folder, "git", "init", "-q")
    dvc(folder, "init", "-q")
    shutil.copytree(repo / ".dvc" / "plots", folder / ".dvc" / "plots")
    shutil.copy(repo / ".dvc" / "config", folder / ".dvc" / "config")
    dvc(folder, "repro", "-q")
    commit(folder)
    return folder


def command(folder: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    author = {f"GIT_{role}_{key}": "x@x" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = (
        os.environ | author | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return command(folder, sys.executable, "-m", "dvc", *arguments)


def commit(folder: Path) -> None:
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-q", "-m", "a run")


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def test_an_experiment_changes_a_setting_and_is_compared(checkout):
    output = dvc(checkout, "exp", "run", "-n", "half", "-S", "mini.train.rank_ratio=0.2")
    assert ran(output) == ["settings", "train", "sample", "score", "tables"]
    rows = list(csv.DictReader(dvc(checkout, "exp", "show", "--csv", "--only-changed").splitlines()))
    half = next(row for row in rows if row["Experiment"] == "half")
    assert half["train.rank_ratio"] == half["ours.clip_text"] == "0.2"
    assert not any(name.startswith(("sweep.", "evidence.", "tables.train")) for name in half), "other profiles stand"
    shown = json.loads(dvc(checkout, "metrics", "diff", "--json"))
    assert shown["data/tables/metrics.json"]["ours.clip_text"] == {"old": 0.4, "new": 0.2, "diff": -0.2}
    params = yaml.safe_load((checkout / "params.yaml").read_text())
    assert params["mini"]["train"]["rank_ratio"] == 0.2 and params["evidence"]["train"]["rank_ratio"] == 0.4
    command(checkout, "git", "checkout", "-q", "--", "params.yaml", "dvc.lock")
    dvc(checkout, "checkout", "-q")


CHANGES = [  # of params.yaml, one after the other, and the stages that each makes stale
    ("sample_batch: 10", "sample_batch: 4", set()),
    ("profile: mini", "profile: evidence", {"sample", "tables"}),
    ("    references: 5", "    references: 4", {"fetch"}),  # evidence takes it from mini
    ("    lr: 0.005", "    lr: 0.004", set()),  # of another profile
]


def test_a_stage_is_stale_where_a_setting_that_it_reads_changes(checkout):
    path, before = checkout / "params.yaml", set(json.loads(dvc(checkout, "status", "--json")))
    assert before == set()
    for old, new, stale in CHANGES:
        path.write_text(path.read_text().replace(old, new, 1))
        dvc(checkout, "repro", "-q", "settings")
        now = set(json.loads(dvc(checkout, "status", "--json")))
        assert now - before == stale, new
        before = now
    command(checkout, "git", "checkout", "-q", "--", "params.yaml", "dvc.lock")
    dvc(checkout, "checkout", "-q")


def test_metrics_and_plots_without_a_network(checkout):
    shown = json.loads(dvc(checkout, "metrics", "show", "--json"))
    assert shown[""]["data"]["data/tables/metrics.json"]["data"]["ours"] == {"clip_text": 0.4, "dino": 0.5}
    dvc(checkout, "plots", "show")  # writes dvc_plots, which git ignores
    page = (checkout / "dvc_plots" / "index.html").read_text()
    assert page.count(", spec);") == 4 and "vegaEmbed('#DINO_by_prompt_group', spec)" in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert command(checkout, "git", "status", "--porcelain") == ""


@pytest.mark.parametrize("stage", ["train", "tables"])
def test_a_failed_run_of_another_profile_leaves_everything(checkout, monkeypatch, stage):
    """Also what DVC's cache does not have."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (checkout / "data" / "learned" / "mine.txt").write_text("of persres run")
    (checkout / "fails_at").write_text(stage)
    before = contents(checkout)
    with pytest.raises(PersresError, match="dvc repro failed"):
        reproduce("sweep", checkout)
    assert contents(checkout) == before
    (checkout / "fails_at").unlink()
    if stage == "tables":
        reproduce("sweep", checkout)
        assert "profile: sweep" in (checkout / "params.yaml").read_text()
        assert not (checkout / ".work" / "before_repro").exists()


def contents(checkout: Path) -> dict[Path, bytes]:
    """Every file in the checkout but for git's and DVC's."""
    paths = (path for path in checkout.rglob("*") if path.is_file() and not {".git", ".dvc"} & set(path.parts))
    return {path: path.read_bytes() for path in paths}
