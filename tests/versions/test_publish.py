"""The git part of a publication: commits, unpushed commits, and the outcome if the answer of a push is lost.

DVC is replaced here; with DVC and a server: test_versions.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.experiments import s3_demo
from persres.versions import publish as publishing
from persres.versions.gc import _check_fetched
from persres.versions.git_dvc import CommandError, git
from persres.versions.publish import Plan, plan_publication, publish

LOCK = (
    "schema: '2.0'\nstages:\n  score:\n    outs: [{path: data/scores.csv, size: 12}, {path: data/sheets, size: 34}]\n"
)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template")
    git(root, "init", "-q", "--bare", "-b", "main", "origin.git")
    git(root, "clone", "-q", "origin.git", "work")
    git(root / "work", "switch", "-q", "-c", "main")
    for name, text in {"dvc.yaml": "{}", "dvc.lock": LOCK, "params.yaml": "a: 1\n", "data/table.csv": "x\n1\n"}.items():
        (root / "work" / name).parent.mkdir(exist_ok=True)
        (root / "work" / name).write_text(text)
    git(root / "work", "add", "-A")
    for key, value in {"user.name": "t", "user.email": "t@t"}.items():
        git(root / "work", "config", key, value)
    git(root / "work", "commit", "-q", "-m", "settings")
    git(root / "work", "push", "-q", "origin", "main")
    return root


@pytest.fixture
def work(template, tmp_path, monkeypatch) -> Path:
    """A clone that is up to date with ``origin.git``."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    git(tmp_path / "work", "remote", "set-url", "origin", str(tmp_path / "origin.git"))
    monkeypatch.setattr(publishing, "configuration", lambda folder: {"core.remote": "s", "remote.s.url": "s3://b/p"})
    monkeypatch.setattr(publishing, "dvc", lambda folder, *arguments, **options: "{}")
    return tmp_path / "work"


def plan(work: Path, version: str = "v1") -> Plan:
    return plan_publication(version, work)


def test_a_detached_head_and_an_unfinished_merge_are_refused(work):
    git(work, "checkout", "-q", "--detach")
    with pytest.raises(PersresError, match=r"HEAD is detached.*git switch main"):
        plan(work)
    git(work, "switch", "-q", "main")
    for branch, text in (("other", "a: 2\n"), ("main", "a: 3\n")):
        git(work, "switch", "-q", *(["-c"] if branch == "other" else []), branch)
        (work / "params.yaml").write_text(text)
        git(work, "commit", "-qam", branch)
    with pytest.raises(PersresError):
        git(work, "merge", "other")
    with pytest.raises(PersresError, match=r"merge is not finished.*git commit"):
        plan(work)


def test_all_changes_of_a_run_are_committed(work):
    """Changed, new, gone, renamed: staged or not."""
    git(work, "mv", "data/table.csv", "data/a table.csv")
    (work / "params.yaml").write_text("a: 2\n")
    (work / "data" / "sheets").mkdir()
    (work / "data" / "sheets" / "ü.png").write_bytes(b"picture")
    (work / "data" / ".gitignore").write_text("/learned\n")
    there = plan(work)
    names = ["data/.gitignore", "data/a table.csv", "data/sheets/ü.png", "data/table.csv", "params.yaml"]
    assert sorted(there.changed) == names
    publish(there, "all of it", work)
    assert git(work, "status", "--porcelain") == ""
    shown = git(work.parent / "origin.git", "show", "--no-renames", "--name-only", "--format=%s", "-z", "v1^{commit}")
    assert sorted(shown.replace("all of it", "").strip("\0\n").split("\0")) == names


@pytest.mark.parametrize(
    "junk", ["params.yaml.bak", "dvc.lock.orig", "data/notes.txt", "data/scores.csv~", "database/x", "data/sheets.zip"]
)
def test_files_that_belong_to_no_run_are_refused(work, junk):
    (work / junk).parent.mkdir(exist_ok=True)
    (work / junk).write_text("mine")
    with pytest.raises(PersresError, match=f"{junk} changed and belong to no run"):
        plan(work)


@pytest.fixture
def with_artifact(work) -> Path:
    """The clone with a model in dvc.yaml, so that a version has two tags."""
    (work / "dvc.yaml").write_text("artifacts:\n  residuals: {path: data/learned, type: model}\n")
    git(work, "commit", "-qam", "a model")
    git(work, "push", "-q", "origin", "main")
    return work


class Killed(BaseException):
    """In the place of kill -9: nothing after it runs, not even what undoes."""


def killed_at(call: int, monkeypatch) -> None:
    """Let git die at this call of ``publish``, as do all later calls."""
    git_itself, calls = publishing.git, []

    def dying(*arguments, **options):
        calls.append(arguments)
        if len(calls) >= call:
            raise Killed
        return git_itself(*arguments, **options)

    monkeypatch.setattr(publishing, "git", dying)


@pytest.mark.parametrize("call", range(1, 9))
def test_a_publication_that_was_killed_goes_on_with_the_next_try(with_artifact, tmp_path, monkeypatch, call):
    """At every call of git: nothing has changed yet, the commit exists, the tag, the other tags, or the push has arrived."""
    work = with_artifact
    (work / "params.yaml").write_text("profile: tiny\ntiny: {base: {}}\n")
    first = plan(work)
    with monkeypatch.context() as patched:
        killed_at(call, patched)
        with contextlib.suppress(Killed):
            publish(first, None, work)
    again = plan(work)
    publish(again, None, work)
    origin = tmp_path / "origin.git"
    assert git(origin, "rev-parse", "v1^{commit}") == git(origin, "rev-parse", "main") == git(work, "rev-parse", "HEAD")
    assert set(git(origin, "tag").split()) == set(first.tags) == {"v1", "residuals@v1.0.0"}
    assert git(origin, "show", "main:params.yaml") == (work / "params.yaml").read_text()
    assert plan(work).done and len(git(origin, "log", "--format=%h", "main").split()) == 3


def test_a_tag_of_another_commit_is_not_published_as_this_one(with_artifact):
    work = with_artifact
    git(work, "tag", "-a", "-m", "mine", "v1")
    git(work, "tag", "-a", "-m", "mine", "residuals@v1.0.0")
    assert not plan(work).done, "a tag of this commit alone goes on"
    (work / "params.yaml").write_text("profile: tiny\ntiny: {base: {}}\n")
    with pytest.raises(
        PersresError, match=r"v1 is a tag of this clone that origin lacks.*git tag -d v1 residuals@v1.0.0, then"
    ):
        plan(work)
    git(work, "commit", "-qam", "other settings")
    with pytest.raises(PersresError, match="v1 is a tag of this clone that origin lacks, and not of this commit"):
        plan(work)
    with pytest.raises(PersresError, match=r"the tag residuals@v1.0.0 of v1.0 exists already; use another name"):
        plan(work, "v1.0")
    git(work, "tag", "-d", "v1", "residuals@v1.0.0")
    assert plan(work).commits
    git(work, "tag", "v1")
    with pytest.raises(PersresError, match="not of this commit"):
        plan(work)


def test_a_clone_without_a_git_remote_goes_on_too(with_artifact):
    work = with_artifact
    git(work, "remote", "remove", "origin")
    git(work, "tag", "-a", "-m", "v1", "v1")
    assert not plan(work).done
    publish(plan(work), None, work)
    assert set(git(work, "tag").split()) == {"v1", "residuals@v1.0.0"} and plan(work).done
    git(work, "commit", "-q", "--allow-empty", "-m", "later")
    with pytest.raises(PersresError, match="v1 exists already"):
        plan(work)


def test_an_invalid_or_existing_version_is_refused(work, tmp_path):
    for name in ("", "-f", "a b", "v1..2/x", "v\u0661", "v\u00e9"):
        with pytest.raises(PersresError, match="is not a valid version"):
            plan(work, name)
    git(tmp_path / "origin.git", "tag", "v1", "main")
    with pytest.raises(PersresError, match=r"origin has v1 already.*git fetch --tags"):
        plan(work)
    git(work, "fetch", "-q", "--tags")
    with pytest.raises(PersresError, match="v1 exists already"):
        plan(work)
    (work / "dvc.lock").unlink()
    with pytest.raises(PersresError, match=r"dvc.lock is missing.*dvc repro"):
        plan(work, "v2")


def test_unpushed_commits_are_listed(work, tmp_path):
    assert plan(work).commits == [] and "unpushed" not in plan(work).text()
    for number in range(7):
        git(work, "commit", "-q", "--allow-empty", "-m", f"thought {number}")
    there = plan(work)
    assert [line.split(" ", 1)[1] for line in there.commits] == [f"thought {n}" for n in (6, 5, 4, 3, 2, 1, 0)]
    assert "thought 6" in there.text() and "and 2 more" in there.text() and "thought 1" not in there.text()
    git(work, "switch", "-q", "-c", "new")
    assert len(plan(work).commits) == 7, "of a branch that the remote lacks: what none of its branches has"
    git(tmp_path, "clone", "-q", "origin.git", "other")
    git(
        tmp_path / "other", "-c", "user.name=o", "-c", "user.email=o@o", "commit", "-q", "--allow-empty", "-m", "theirs"
    )
    git(tmp_path / "other", "push", "-q")
    git(work, "switch", "-q", "main")
    with pytest.raises(PersresError, match="origin has commits of main that this clone lacks; git pull"):
        plan(work)


class Flaky:
    """git with a push that fails before it begins or, with ``arrives``, after the remote has accepted it. ``mute``: the remote no longer answers."""

    def __init__(self, arrives: bool, mute: bool = False, error: BaseException | None = None) -> None:
        self.arrives, self.mute, self.pushed = arrives, mute, False
        self.error = error or CommandError("git push failed: fatal: the remote end hung up unexpectedly")

    def __call__(self, folder: Path, *arguments: str) -> str:
        if arguments[0] == "push":
            self.pushed = True
            if self.arrives:
                git(folder, *arguments)
            raise self.error
        if arguments[0] == "ls-remote" and self.pushed and self.mute:
            raise CommandError("git ls-remote failed: fatal: unable to access")
        return git(folder, *arguments)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_a_lost_answer_is_no_failure(work, tmp_path, monkeypatch, caplog, error):
    (work / "params.yaml").write_text("a: 2\n")
    there = plan(work)
    monkeypatch.setattr(publishing, "git", Flaky(arrives=True, error=error))
    publish(there, None, work)
    assert "origin has v1, though its answer was lost" in caplog.text
    assert git(work, "rev-parse", "v1", "HEAD") == git(tmp_path / "origin.git", "rev-parse", "v1", "main")


def test_a_push_that_did_not_arrive_is_undone(work, tmp_path, monkeypatch):
    (work / "params.yaml").write_text("a: 2\n")
    there, before = plan(work), git(work, "rev-parse", "HEAD")
    monkeypatch.setattr(publishing, "git", Flaky(arrives=False))
    with pytest.raises(PersresError, match="v1 was not published: git push failed"):
        publish(there, None, work)
    assert git(work, "tag") == git(tmp_path / "origin.git", "tag") == "" and git(work, "rev-parse", "HEAD") == before
    assert git(work, "status", "--porcelain") == " M params.yaml\n"


@pytest.mark.parametrize("arrives", [True, False])
def test_an_unknown_outcome_comes_with_the_command_to_finish(work, tmp_path, monkeypatch, arrives):
    (work / "params.yaml").write_text("a: 2\n")
    there = plan(work)
    monkeypatch.setattr(publishing, "git", Flaky(arrives, mute=True))
    with pytest.raises(PersresError, match="it is unknown whether v1 was published") as caught:
        publish(there, None, work)
    assert (git(tmp_path / "origin.git", "tag") == "v1\n") is arrives
    command = str(caught.value).partition("answers again: git ")[2].partition("   #")[0]
    git(work, *command.split())
    assert git(work, "rev-parse", "v1", "HEAD") == git(tmp_path / "origin.git", "rev-parse", "v1", "main")


def test_gc_needs_all_refs_of_a_remote(work, tmp_path):
    _check_fetched(work, "origin", old_commits=True)
    git(tmp_path, "clone", "-q", "origin.git", "other")
    other = tmp_path / "other"
    git(other, "-c", "user.name=o", "-c", "user.email=o@o", "commit", "-q", "--allow-empty", "-m", "theirs")
    git(other, "push", "-q", "origin", "HEAD:refs/heads/theirs")
    for old_commits in (False, True):
        with pytest.raises(PersresError, match=r"lacks \(theirs\).*git fetch --tags origin"):
            _check_fetched(work, "origin", old_commits)
    git(work, "fetch", "-q", "origin")
    _check_fetched(work, "origin", old_commits=False)  # dvc gc keeps all commits, those of remotes too
    with pytest.raises(PersresError, match="check each branch out once"):
        _check_fetched(work, "origin", old_commits=True)  # but of branches the local ones alone
    git(work, "branch", "theirs", "origin/theirs")
    _check_fetched(work, "origin", old_commits=True)
    git(tmp_path / "origin.git", "tag", "v1", "main")
    with pytest.raises(PersresError, match=r"lacks \(v1\)"):
        _check_fetched(work, "origin", old_commits=False)


class Quick:
    """A trip that really writes what a pull would, and nothing else."""

    def persres(self, says: str, folder: Path, *arguments: str) -> str:
        if arguments[0] == "pull":
            (folder / "rally_car.safetensors").write_bytes(b"v1")
        return "{}" if "--json" in arguments else "picture.png"


def test_the_demo_fails_if_it_is_late_or_v1_differs(tmp_path, monkeypatch):
    digests = {"v1": hashlib.md5(b"v1").hexdigest(), "v2": hashlib.md5(b"v2").hexdigest()}
    for name in ("in time", "late", "another"):
        (tmp_path / name).mkdir()
    record = s3_demo._elsewhere(Quick(), tmp_path, tmp_path / "in time", digests)
    assert record["pulled_and_sampled_s"] <= record["goal_s"] == 60
    with pytest.raises(PersresError, match="v1 came back as"):
        s3_demo._elsewhere(Quick(), tmp_path, tmp_path / "another", digests | {"v1": "0"})
    monkeypatch.setattr(s3_demo, "MAX_SECONDS", -1.0)
    with pytest.raises(PersresError, match="the goal is -1 s"):
        s3_demo._elsewhere(Quick(), tmp_path, tmp_path / "late", digests)


def test_the_demo_records_its_commit(work):
    (work / "persres").mkdir()
    assert s3_demo._provenance(work)["commit"] == git(work, "rev-parse", "HEAD").strip()
    (work / "params.yaml").write_text("a: 2\n")
    record = s3_demo._provenance(work)
    assert record["commit"].endswith("-dirty") and record["moto"] and record["torch"]
