"""What a worker keeps: checked each time it is used, bounded, and never taken from under a unit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from persres.fleet.cache import in_use, trim
from persres.fleet.content_store import get_input, input_path, put_input, put_unit
from persres.fleet.serialization import unit_to_json
from persres.fleet.shards import make_shard
from persres.fleet.store import open_store
from persres.fleet.worker import INPUTS, StoredJob, report_key, run_shard
from persres.stages.noop import NoopSpec, noop_unit
from persres.units import disk
from persres.units.files import digest_folder
from persres.units.specs import FileRef, Spec
from persres.units.unit import Unit, is_done

SIZE = 1000  # bytes of each input here


class ReadSpec(Spec):
    """Of a unit that reads files."""

    files: tuple[FileRef, ...]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def inputs(store, folder: Path, count: int) -> list[FileRef]:
    """So many, in the store."""
    references = []
    for number in range(count):
        path = folder / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]) * SIZE)
        references.append(FileRef.of(path))
        put_input(store, references[-1])
    return references


def cached(work: Path) -> set[str]:
    return {path.name for path in (work / INPUTS).glob("*/*/*.bin")}


@pytest.mark.parametrize("change", ["changed", "gone", "more"])
def test_a_cached_folder_that_is_no_longer_what_it_was_is_fetched_again(store, tmp_path, change):
    folder = tmp_path / "class_images"
    inputs(store, folder, 3)
    reference = FileRef.of(folder)
    put_input(store, reference)
    place = Path(get_input(store, reference, tmp_path / "cache").path)
    if change == "changed":
        (place / "1.bin").write_bytes(b"\x02" * SIZE)  # as long as it was
    elif change == "gone":
        (place / "1.bin").unlink()
    else:
        (place / "more.bin").write_bytes(b"3")
    again = get_input(store, reference, tmp_path / "cache")
    assert again.path == str(place) and digest_folder(place) == reference.digest
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_what_was_used_longest_ago_goes_first_and_never_what_is_in_use(store, tmp_path):
    work, units = tmp_path / "work", [Unit("noop", f"n/{i}", NoopSpec(number=i)) for i in range(2)]
    references = inputs(store, tmp_path / "photos", 4)
    for age, reference in enumerate(references):
        place = Path(get_input(store, reference, work / INPUTS).path)
        os.utime(place.parent, (age, age))
    for unit in units:
        noop_unit(unit, work, "cpu")
    put_unit(store, units[0], work)
    stored = sum(path.stat().st_size for path in units[0].folder(work).iterdir())
    assert trim(work, 4 * SIZE + stored) == 4 * SIZE + stored and len(cached(work)) == 4
    with in_use(input_path(references[1], work / INPUTS).parent):  # which makes it the one that was used last
        assert trim(work, 2 * SIZE + stored) == 2 * SIZE + stored
        assert cached(work) == {"1.bin", "3.bin"} and is_done(units[0], work)
        assert trim(work, 0) == SIZE and cached(work) == {"1.bin"}
    half = work / INPUTS / "aa" / ".digest.0.gone"
    half.mkdir(parents=True)
    assert trim(work, 0) == 0 and not cached(work) and not half.exists()
    assert not is_done(units[0], work) and is_done(units[1], work), "only what the store has too"


def test_another_process_holds_what_it_uses_until_it_ends(store, tmp_path):
    (reference,), work = inputs(store, tmp_path / "photos", 1), tmp_path / "work"
    entry = Path(get_input(store, reference, work / INPUTS).path).parent
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"
    user = subprocess.Popen([sys.executable, "-c", code, str(entry)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    user.stdout.readline()
    assert trim(work, 0) == SIZE
    user.kill(), user.wait()
    assert trim(work, 0) == 0


def test_a_fetch_trims_the_cache_except_for_its_unit(store, tmp_path):
    work, references = tmp_path / "work", inputs(store, tmp_path / "photos", 3)
    units = [
        Unit("read", "r/0", ReadSpec(files=tuple(references[:2]))),
        Unit("read", "r/1", ReadSpec(files=(references[2],))),
    ]

    def stored(cache_bytes):
        return StoredJob(str(tmp_path / "store"), "s", work, cache_bytes)

    with ExitStack() as first:
        here = stored(0).localize(units[0], first)
        assert cached(work) == {"0.bin", "1.bin"} and all(Path(ref.path).exists() for ref in here.spec.files)
        with ExitStack() as second:
            stored(0).localize(units[1], second)
            assert cached(work) == {"0.bin", "1.bin", "2.bin"}, "both are running"
    with ExitStack() as again:
        stored(SIZE).localize(units[0], again)
        assert len(cached(work)) == 3, "nothing was fetched"
    with ExitStack() as another:
        last = Unit("read", "r/2", ReadSpec(files=tuple(inputs(store, tmp_path / "photos", 4)[3:])))
        stored(2 * SIZE).localize(last, another)
    assert cached(work) == {"3.bin", "1.bin"} or cached(work) == {"3.bin", "0.bin"}


def test_a_worker_whose_disk_is_full_begins_nothing_and_says_where(store, tmp_path, monkeypatch):
    work, usage = tmp_path / "work", shutil.disk_usage(tmp_path)
    shard = make_shard([unit_to_json(Unit("noop", "n/0", NoopSpec(number=0)))], 0, "cpu", {})
    store.write(shard.key, shard.model_dump_json().encode())
    (reference,) = inputs(store, tmp_path / "photos", 1)
    get_input(store, reference, work / INPUTS)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=5_000_000))
    report = run_shard(str(tmp_path / "store"), shard.id, work)
    (reason,) = report.unfinished.values()
    assert str(work) in reason and reason.startswith("on ") and "0.01 GB free" in reason and not report.failed
    assert json.loads(store.read(report_key(shard.id))) == {"failed": {}, "unfinished": report.unfinished}
    assert not (work / "noop").exists()
    get_input(store, reference, work / INPUTS)
    large = lambda folder: usage._replace(free=5_000_000 if cached(work) else 500_000_000)  # noqa: E731
    monkeypatch.setattr(disk.shutil, "disk_usage", large)
    report = run_shard(str(tmp_path / "store"), shard.id, work)
    assert not report.unfinished and not cached(work), "what it kept gave way"
