"""Garbage collection reads what every commit names, whatever DVC would make of the commit, and says once what it would remove."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from persres.cli.main import main
from persres.errors import PersresError
from persres.versions.gc import collect_garbage, named_digests
from persres.versions.git_dvc import git

UNREADABLE = {  # a commit's dvc.yaml that DVC can't read today
    "a file of vars that is gone": "vars: [gone.yaml]\nstages:\n  train: {cmd: 'echo ${lr}', outs: [data]}\n",
    "a variable that is gone": "stages:\n  train: {cmd: 'echo ${gone}', outs: [data]}\n",
    "vars from params that are gone": "vars: ['params.yaml:gone']\nstages:\n  train: {cmd: 'echo ${gone.lr}', outs: [data]}\n",
    "a merge that nobody finished": "<<<<<<< HEAD\nstages: {}\n=======\nstages: [\n>>>>>>> other\n",
    "an empty file": "",
    "keys of another DVC": "stages:\n  train: {cmd: 'true', later_key: {a: 1}, outs: [{data: {sometime: true}}]}\n",
}
SOUND = "stages:\n  train: {cmd: 'true', outs: [data]}\n"


@pytest.fixture(autouse=True)
def author(monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@t")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")


class Clone:
    """A checkout with a plain folder as its remote; what DVC would write is written by hand."""

    def __init__(self, root: Path) -> None:
        self.work, self.store = root / "work", root / "store"
        (self.work / ".dvc").mkdir(parents=True)
        self.store.mkdir()
        (self.work / ".dvc" / "config").write_text(
            f"[core]\n    remote = store\n['remote \"store\"']\n    url = {self.store}\n"
        )
        git(self.work, "init", "-q", "-b", "main")
        (self.work / ".gitignore").write_text("/data\n/.dvc/cache\n/.dvc/tmp\n")

    def put(self, data: bytes, suffix: str = "", cached: bool = True) -> str:
        """An object in the remote, and in the cache; returns its digest."""
        name = hashlib.md5(data).hexdigest() + suffix
        for root in (self.store, *([self.work / ".dvc" / "cache"] if cached else [])):
            path = root / "files" / "md5" / name[:2] / name[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return name

    def folder(self, *files: bytes, cached: bool = True) -> str:
        """A folder of files; returns the digest of its listing."""
        entries = [{"md5": self.put(data, cached=cached), "relpath": f"{i}"} for i, data in enumerate(files)]
        return self.put(json.dumps(entries).encode(), ".dir", cached)

    def commit(self, pipeline: str, digest: str, message: str = "m") -> str:
        lock = f"schema: '2.0'\nstages:\n  train:\n    cmd: 'true'\n    outs:\n    - path: data\n      hash: md5\n      md5: {digest}\n"
        (self.work / "dvc.yaml").write_text(pipeline)
        (self.work / "dvc.lock").write_text(lock)
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "-m", message)
        return git(self.work, "rev-parse", "HEAD").strip()

    def stored(self) -> set[bytes]:
        return {path.read_bytes() for path in (self.store / "files").rglob("*") if path.is_file()}


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_commit_that_dvc_cannot_read_loses_nothing(clone, case):
    clone.commit(UNREADABLE[case], clone.folder(b"old dog", b"old mug"))
    git(clone.work, "rm", "-q", "--cached", "dvc.yaml")
    clone.commit(SOUND, clone.folder(b"new dog"))
    clone.put(b"stray" * 1000)
    garbage = collect_garbage(folder=clone.work)
    assert garbage.objects == 1 and garbage.bytes == 5000 and not garbage.deleted
    assert b"stray" * 1000 in clone.stored()
    assert collect_garbage(delete=True, folder=clone.work).objects == 1
    assert {b"old dog", b"old mug", b"new dog"} < clone.stored() and b"stray" * 1000 not in clone.stored()
    assert collect_garbage(folder=clone.work).objects == 0


def test_a_dry_run_says_once_what_would_go(clone, monkeypatch, capsys):
    clone.commit(SOUND, clone.folder(b"dog"))
    for number in range(3):
        clone.folder(b"stray %d" % number * 200_000, cached=number > 0)
    monkeypatch.chdir(clone.work)
    before = clone.stored()
    assert main(["gc"]) == 0
    output = capsys.readouterr().out
    assert (
        output.count("would remove") == 1
        and "would remove 6 objects, 4.0 MiB (4 in this clone's cache; 6 in store)" in output
    )
    assert len(output.splitlines()) == 2 and "--delete" in output and clone.stored() == before
    assert main(["gc", "--verbose"]) == 0
    assert capsys.readouterr().out.count("Removing ") == 10
    assert main(["gc", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["objects"] == 6 and facts["stores"]["store"] == [6, facts["bytes"]] and len(facts["paths"]) == 10
    assert main(["gc", "--delete"]) == 0
    assert "removed 6 objects, 4.0 MiB" in capsys.readouterr().out and len(clone.stored()) == 2
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == "would remove 0 objects, 0.0 MiB\n"


def test_old_commits_go_on_demand_and_every_tip_stays(clone):
    """Tags, branches, the remote's branches, and what is not committed yet."""
    clone.commit(SOUND, clone.put(b"old"))
    for name in ("tagged", "branch", "remote", "main"):
        commit = clone.commit(SOUND, clone.put(name.encode()))
        refs = {"tagged": "refs/tags/v1", "branch": "refs/heads/other", "remote": "refs/remotes/origin/x"}
        if name in refs:
            git(clone.work, "update-ref", refs[name], commit)
    (clone.work / "photos.dvc").write_text(f"outs:\n- md5: {clone.put(b'photos')}\n  hash: md5\n  path: photos\n")
    assert collect_garbage(folder=clone.work).objects == 0
    assert collect_garbage(True, True, clone.work).objects == 1
    assert clone.stored() == {b"tagged", b"branch", b"remote", b"main", b"photos"}


def test_files_of_a_folder_that_only_the_remote_lists_stay(clone):
    clone.commit(SOUND, clone.folder(b"dog", b"mug", cached=False))
    assert collect_garbage(True, folder=clone.work).objects == 0
    (clone.work / "dvc.lock").unlink()
    git(clone.work, "commit", "-qam", "nothing")
    assert collect_garbage(True, folder=clone.work).objects == 0, "a commit names them"
    assert collect_garbage(True, True, clone.work).objects == 3, "no tip does"


def test_what_could_lose_data_is_refused(clone, tmp_path, monkeypatch, capsys):
    for content in (b"old", b"new"):
        clone.commit(SOUND, clone.put(content))
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{clone.work}", "shallow")
    with pytest.raises(PersresError, match=r"shallow.*--unshallow"):
        collect_garbage(True, folder=tmp_path / "shallow")
    (clone.work / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    monkeypatch.chdir(clone.work)
    assert main(["gc", "--delete"]) == 1
    assert "remote" in capsys.readouterr().err
    broken = clone.put(b"no listing", ".dir")
    clone.commit(SOUND, broken)
    (clone.work / ".dvc" / "config").write_text(f"[core]\n    remote = s\n['remote \"s\"']\n    url = {clone.store}\n")
    assert main(["gc", "--delete"]) == 1
    assert f"the listing {broken}" in capsys.readouterr().err
    assert clone.stored() == {b"old", b"new", b"no listing"}


def test_a_repository_without_commits_names_its_working_files(clone):
    (clone.work / "a.dvc").write_text(f"outs:\n- md5: {'a' * 32}.dir\n")
    assert named_digests(clone.work, False) == named_digests(clone.work, True) == {f"{'a' * 32}.dir"}
