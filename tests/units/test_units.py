"""Units: done by manifest only, failures named once, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from persres.errors import PersresError, UnitFailures
from persres.units import disk
from persres.units.checkpoints import read_tensors, write_tensors
from persres.units.files import digest_folder, link_file, publishing, write_atomic
from persres.units.locks import stage_lock
from persres.units.pool import _cores, run_units
from persres.units.specs import FileRef, Spec
from persres.units.unit import MANIFEST, Unit, facts, finish, is_done


class Made(Spec):
    """A spec of no stage: a number, and what is to go wrong."""

    a: int = 0
    fail: bool = False
    fits: int = 0  # the batch that fits into memory
    die: bool = False


def write_name(unit: Unit, work, device: str) -> None:
    """A unit's work: fail where told to, else write one file and count the runs."""
    folder = unit.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    if unit.spec.fail:
        raise PersresError("told to fail")
    if unit.spec.die:
        os._exit(9)
    with (work / "runs.txt").open("a") as file:
        file.write(unit.name + "\n")
    (folder / "out.txt").write_text(unit.name)
    finish(unit, work, [folder / "out.txt"])


def units(*specs: dict) -> list[Unit]:
    return [Unit("stage", f"unit{i}", Made(**spec)) for i, spec in enumerate(specs)]


def runs(work) -> list[str]:
    return (work / "runs.txt").read_text().split() if (work / "runs.txt").exists() else []


class Reads(Spec):
    """A spec with a file to read."""

    source: FileRef


def test_where_a_file_lies_is_no_part_of_a_unit_but_what_it_holds_is(tmp_path):
    hashes = []
    for place, text in (("here", "same"), ("there", "same"), ("here", "other")):
        (tmp_path / place).write_text(text)
        hashes.append(Unit("stage", "unit", Reads(source=FileRef.of(tmp_path / place))).hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_done_units_are_skipped_and_a_changed_spec_is_not(tmp_path):
    run_units(units({"a": 1}, {"a": 2}), tmp_path, write_name, 1, "cpu")
    run_units(units({"a": 1}, {"a": 3}), tmp_path, write_name, 1, "cpu")
    assert runs(tmp_path) == ["unit0", "unit1", "unit1"]


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "other hash", "lost file", "changed file"])
def test_existence_is_not_enough(tmp_path, damage):
    (unit,) = units({"a": 1})
    write_name(unit, tmp_path, "cpu")
    folder = unit.folder(tmp_path)
    assert is_done(unit, tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "torn manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40])
    elif damage == "other hash":
        (folder / MANIFEST).write_text(json.dumps(manifest | {"spec_hash": "0"}))
    elif damage == "lost file":
        (folder / "out.txt").unlink()
    else:
        (folder / "out.txt").write_text("else")
    assert not is_done(unit, tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fan_out_finishes_then_fails_once_naming_the_failed(tmp_path, workers):
    with pytest.raises(UnitFailures) as caught:
        run_units(
            units({}, {"fail": True, "a": 1}, {"a": 2}, {"fail": True, "a": 3}), tmp_path, write_name, workers, "cpu"
        )
    assert set(caught.value.failures) == {"unit1", "unit3"}
    assert sorted(runs(tmp_path)) == ["unit0", "unit2"]
    assert "2 of 4 units failed" in str(caught.value)


def finishes_then_raises(unit: Unit, work, device: str) -> None:
    """As an agent's work whose put is refused: the manifest is here, and the unit is not where it should be."""
    write_name(unit, work, device)
    raise PersresError("put refused")


def test_what_goes_wrong_after_the_manifest_is_a_failure_too(tmp_path):
    with pytest.raises(UnitFailures, match="put refused") as caught:
        run_units(units({}, {"a": 1}), tmp_path, finishes_then_raises, 1, "cpu")
    assert set(caught.value.failures) == {"unit0", "unit1"}


def test_a_dead_worker_is_a_named_failure(tmp_path):
    with pytest.raises(UnitFailures, match="worker process died"):
        run_units(units({"die": True}, {"a": 1}, {"a": 2}), tmp_path, write_name, 2, "cpu")


def write_environment(unit: Unit, work, device: str) -> None:
    folder = unit.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out.txt").write_text(os.environ.get("PERSRES_TEST", "none"))
    finish(unit, work, [folder / "out.txt"])


def test_workers_have_the_environment_of_the_call(tmp_path, monkeypatch):
    """And not that of the first call, whose process they are forked from."""
    forkserver._forkserver._stop()
    seen = []
    for place, value in enumerate(("first", None, "third")):
        if value is None:
            monkeypatch.delenv("PERSRES_TEST")
        else:
            monkeypatch.setenv("PERSRES_TEST", value)
        made = units({"a": place}, {"a": place, "fits": 1})
        run_units(made, tmp_path, write_environment, 2, "cpu")
        seen.append({(unit.folder(tmp_path) / "out.txt").read_text() for unit in made})
    assert seen == [{"first"}, {"none"}, {"third"}]


def test_a_headers_metadata_is_sorted_so_that_the_same_result_has_the_same_digest(tmp_path):
    settings = dict.fromkeys(("zebra", "mug", "ähre", "cat", "b", "a"), "grün")
    digests = set()
    for number, names in enumerate((list(settings), sorted(settings), sorted(settings)[::-1])):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, {"x": torch.ones(2)}, {name: settings[name] for name in names})
        digests.add(path.read_bytes())
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        assert list(header["__metadata__"].items()) == sorted(settings.items())
        assert torch.equal(read_tensors(path)[0]["x"], torch.ones(2)) and read_tensors(path)[1] == settings
    assert len(digests) == 1


def test_publishing_is_whole_or_not_at_all(tmp_path):
    target = tmp_path / "data" / "out"
    with publishing(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), publishing(target) as fresh:
        (fresh / "a").write_text("2")
        _ = 1 / 0
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["out"], "nothing half-written stays"
    before = digest_folder(target)
    with publishing(target) as fresh:
        (fresh / "b").write_text("3")
    assert digest_folder(target) != before
    assert not (target / "a").exists()


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
        write_atomic(tmp_path / "b", b"b")
    finally:
        os.umask(before)
    assert {oct((tmp_path / name).stat().st_mode & 0o777) for name in ("a.safetensors", "b")} == {"0o640"}


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PersresError, match="cannot write"), publishing(tmp_path / "file" / "out"):
        pass
    with pytest.raises(PersresError, match="cannot write"), stage_lock(tmp_path / "file", "train"):
        pass


def test_a_second_run_waits_for_the_first(tmp_path):
    code = "import sys,time;from pathlib import Path;from persres.units.locks import stage_lock\nwith stage_lock(Path(sys.argv[1]),'s'):\n print('in',flush=True);time.sleep(3)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        started = time.monotonic()
        with stage_lock(tmp_path, "s"):
            assert time.monotonic() - started > 1
        assert first.wait() == 0


def test_a_full_disk_is_one_clear_error_and_leaves_what_was(tmp_path):
    """A file-size limit stands in for a full disk: the write fails half-way."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from persres.units.checkpoints import write_tensors
from persres.errors import PersresError
path = Path(sys.argv[1])
write_tensors(path, {"a": torch.ones(4)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensors(path, {"a": torch.zeros(100_000)}, {})
except PersresError as error:
    print(error)
"""
    path = tmp_path / "r.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "free some space" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    assert path.stat().st_size < 4096


def note_threads(unit: Unit, work, device: str) -> None:
    """A unit's work: record how many threads its sums run over."""
    import torch

    folder = unit.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "threads").write_text(str(torch.get_num_threads()))
    finish(unit, work, [folder / "threads"])


def test_threads_follow_from_the_plan_and_not_from_what_is_left(tmp_path):
    import torch

    before = torch.get_num_threads()
    try:
        todo = units({"a": 1}, {"a": 2}, {"a": 3})
        run_units(todo, tmp_path, note_threads, 0, "cpu")
        first = {u.name: (u.folder(tmp_path) / "threads").read_text() for u in todo}
        (todo[1].folder(tmp_path) / MANIFEST).unlink()
        torch.set_num_threads(7)
        run_units(todo, tmp_path, note_threads, 0, "cpu")
        assert {u.name: (u.folder(tmp_path) / "threads").read_text() for u in todo} == first
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "expected"), [("1", "1"), ("1,2", "1"), ("", str(_cores())), ("many", str(_cores()))]
)
def test_the_limit_of_threads_applies(tmp_path, monkeypatch, limit, expected):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    try:
        todo = units({"a": 1})
        run_units(todo, tmp_path, note_threads, 1, "cpu")
        assert (todo[0].folder(tmp_path) / "threads").read_text() == expected
    finally:
        torch.set_num_threads(before)


def _hungry(unit: Unit, work: Path, device: str, batch: int = 8) -> None:
    (work / "tried").mkdir(parents=True, exist_ok=True)
    (work / "tried" / f"{len(list((work / 'tried').iterdir()))}-{batch}").touch()
    if batch > unit.spec.fits:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    path = unit.folder(work) / "out"
    path.parent.mkdir(parents=True)
    path.write_text("same at any batch")
    finish(unit, work, [path], {})


def test_a_batch_that_does_not_fit_is_halved_once_and_that_is_recorded(tmp_path):
    (fits, too_much) = units({"fits": 4}, {"fits": 1})
    run_units([fits], tmp_path, partial(_hungry, batch=8), 1, "cpu")
    assert facts(fits, tmp_path) == {"batch_halved_to": 4} and is_done(fits, tmp_path)
    with pytest.raises(UnitFailures, match=r"out of memory at batch 8 and at 4; lower runtime\.sample_batch"):
        run_units([too_much], tmp_path, partial(_hungry, batch=8), 1, "cpu")
    with pytest.raises(UnitFailures, match=r"out of memory .*set runtime\.cpu_offload"):
        run_units([too_much], tmp_path, _no_batch, 1, "cpu")
    assert [p.name.split("-")[1] for p in sorted((tmp_path / "tried").iterdir())] == ["8", "4", "8", "4"]


def _no_batch(unit: Unit, work: Path, device: str) -> None:
    raise MemoryError


def test_a_file_in_a_cache_is_recorded_under_its_original_path(tmp_path):
    (tmp_path / "a.png").write_bytes(b"photo")
    original = FileRef.of(tmp_path / "a.png")
    cached = original.localized(Path("/cache/1"))
    assert cached.path == "/cache/1" and cached.model_dump() == original.model_dump()
    moved = cached.localized(Path("/cache/2"))
    assert moved.path == "/cache/2" and moved.model_dump() == original.model_dump()


def test_a_disk_that_is_too_small_is_reported_before_the_stage(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=3_000_000_000))
    disk.check_disk("sample", tmp_path / "work", 3_000_000_000, tmp_path / "data" / "samples")
    with pytest.raises(PersresError, match=r"sample: 3\.00 GB free at .*, up to 3\.10 GB needed"):
        disk.check_disk("sample", tmp_path / "work", 3_100_000_000, tmp_path / "data" / "samples")
    (tmp_path / "data" / "samples").mkdir(parents=True)
    with (tmp_path / "data" / "samples" / "there").open("wb") as file:
        file.truncate(200_000_000)
    disk.check_disk("sample", tmp_path / "work", 3_100_000_000, tmp_path / "data" / "samples")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=1))
    with pytest.raises(PersresError, match="tables: "):
        disk.check_disk("tables", tmp_path / "work")


def test_a_published_file_is_a_hard_link_or_a_copy(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "data" / "target"
    source.write_bytes(b"1")
    link_file(source, target)
    assert target.samefile(source)
    write_atomic(source, b"2")
    assert target.read_bytes() == b"1", "a rename leaves what is published"
    target.unlink()

    def fails(*paths):
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", fails)
    link_file(source, target)
    assert target.read_bytes() == b"2" and not target.samefile(source)
