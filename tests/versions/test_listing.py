"""persres list: date, message, concepts and main score of every version, also where a part is missing; pull --all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persres.cli.main import main
from persres.versions.git_dvc import git
from tests.support.stranger import AUTHOR, PARAMS, lock_of, md5

TABLE = "config,clip_text,clip_text_low,dino,dino_low\nbase,0.8,0.7,0.3,0.2\nours,0.7,0.6,{},0.5\n"


class Published:
    """A repository on this machine with versions, whose DVC remote is a folder."""

    def __init__(self, root: Path) -> None:
        self.folder, self.store = root / "theirs", root / "store"
        (self.folder / ".dvc").mkdir(parents=True)
        git(self.folder, "init", "-q", "-b", "main")
        (self.folder / ".dvc" / "config").write_text(
            f"[core]\n    remote = store\n['remote \"store\"']\n    url = {self.store}\n"
        )
        (self.folder / "params.yaml").write_text(PARAMS)

    def put(self, data: bytes, suffix: str = "") -> str:
        name = md5(data) + suffix
        path = self.store / "files" / "md5" / name[:2] / name[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def release(self, version: str, residuals: dict[str, bytes], table: str | None, message: str = "a message") -> None:
        outs = {"data/learned": {f"{name}.safetensors": data for name, data in residuals.items()}}
        outs |= {} if table is None else {"data/tables": {"table1.csv": table.encode()}}
        lock = json.loads(lock_of(""))
        lock["stages"]["train"]["outs"] = [
            {"path": path, "hash": "md5", "md5": self.put(json.dumps([{"md5": self.put(d), "relpath": n} for n, d in files.items()]).encode(), ".dir")}
            for path, files in outs.items()
        ]  # fmt: skip
        (self.folder / "dvc.lock").write_text(json.dumps(lock))
        git(self.folder, "add", "-A")
        git(self.folder, *AUTHOR, "commit", "-q", "--allow-empty", "-m", "commit")
        git(self.folder, *AUTHOR, "tag", "-a", version, "-m", message)

    def addresses(self) -> tuple[str, str]:
        return str(self.folder), f"file://{self.folder}"


@pytest.fixture
def published(tmp_path, monkeypatch) -> Published:
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-11-29T10:00:00+00:00")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = Published(tmp_path)
    made.release("v1", {"ours/dog7": b"dog"}, TABLE.format(0.5), "first")
    names = ("mug", "dog7", "cat", "robot", "fish")
    made.release("v2", {f"ours/{name}": name.encode() for name in names}, TABLE.format(0.61), "twice the steps\n\nmore")
    return made


@pytest.mark.parametrize("address", [0, 1], ids=["folder", "url"])
def test_every_version_has_date_concepts_score_and_message(published, capsys, address):
    repo = published.addresses()[address]
    assert main(["list", "--repo", repo]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "v2  2026-11-29  5 concepts (cat, dog7, fish, mug and 1 more)  ours dino 0.6100  twice the steps",
        "v1  2026-11-29  1 concepts (dog7)  ours dino 0.5000  first",
    ]
    assert main(["list", "--repo", repo, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["v2", "v1"], "as in version 0.1"
    assert main(["list", "--repo", repo, "--json", "--details"]) == 0
    newest, oldest = json.loads(capsys.readouterr().out)
    assert newest["version"] == "v2" and newest["concepts"] == ["cat", "dog7", "fish", "mug", "robot"]
    assert oldest["score"] == ["ours", "dino", 0.5] and oldest["date"].startswith("2026-11-29T10:00:00")


@pytest.mark.parametrize("missing", ["table", "score", "residuals", "remote", "lock", "annotation"])
def test_what_is_missing_costs_a_version_nothing_else(published, capsys, missing):
    table = {"table": None, "score": "config,clip_text,clip_text_low\nother,,\n"}.get(missing, TABLE.format(0.7))
    published.release("v3", {} if missing == "residuals" else {"ours/dog7": b"new"}, table, "third")
    if missing == "remote":
        published.store.rename(published.store.with_name("gone"))
    if missing == "lock":
        (published.folder / "dvc.lock").write_text("<<<<<<< HEAD\n")
        git(published.folder, *AUTHOR, "commit", "-qam", "broken")
        git(published.folder, *AUTHOR, "tag", "-a", "v4", "-m", "fourth\x1b[2J")
    if missing == "annotation":
        git(published.folder, "tag", "v4")
    assert main(["list", "--repo", published.addresses()[1]]) == 0
    captured = capsys.readouterr()
    lines = {line.split()[0]: line for line in captured.out.splitlines()}
    assert set(lines) == {"v1", "v2", "v3"} | ({"v4"} if missing in ("lock", "annotation") else set())
    assert "\x1b" not in captured.out and captured.err.count("list: ") <= 1
    assert ("ours dino 0.6100" in lines["v2"]) == (missing != "remote")
    assert ("no score" in lines["v3"]) == (missing in ("table", "score", "remote", "residuals"))
    assert ("not known" in lines["v3"]) == (missing in ("residuals", "remote"))
    assert missing != "annotation" or lines["v4"].endswith("commit"), "a plain tag has its commit's message"


def test_without_versions_one_line_says_so(tmp_path, capsys):
    git(tmp_path, "init", "-q")
    assert main(["list", "--repo", str(tmp_path)]) == 0
    assert "nothing was published yet" in capsys.readouterr().out
    assert main(["list", "--repo", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_all_residuals_are_pulled(published, capsys):
    assert main(["pull", "--all", "--repo", published.addresses()[0], "--out", "all"]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(
        f"all/{n}.safetensors" for n in ("cat", "dog7", "fish", "mug", "robot")
    )
    assert Path("all/fish.safetensors").read_bytes() == b"fish"
    assert main(["pull", "--all", "--rev", "v1", "--repo", published.addresses()[0], "--out", "old", "--json"]) == 0
    [pulled] = json.loads(capsys.readouterr().out)
    assert (
        pulled["concept"] == "ours/dog7" and pulled["version"] == "v1" and Path(pulled["file"]).read_bytes() == b"dog"
    )


def test_variants_with_the_same_concept_get_folders(published, capsys):
    published.release("v3", {"ours/dog7": b"a", "early/dog7": b"b"}, None)
    assert main(["pull", "--all", "--repo", published.addresses()[0]]) == 0
    assert Path("ours/dog7.safetensors").read_bytes() == b"a" and Path("early/dog7.safetensors").read_bytes() == b"b"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_lost_residual_costs_the_others_nothing(published, capsys, as_json):
    lost = md5(b"fish")
    (published.store / "files" / "md5" / lost[:2] / lost[2:]).unlink()
    assert main(["pull", "--all", "--repo", published.addresses()[0], *(["--json"] if as_json else [])]) == 1
    captured = capsys.readouterr()
    assert "1 of 5 residuals of v2 are missing: ours/fish" in captured.err
    files = [one["file"] for one in json.loads(captured.out)] if as_json else captured.out.split()
    assert len(files) == 4 and all(Path(file).is_file() for file in files)
