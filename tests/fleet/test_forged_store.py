"""What a store holds may be anything: manifests, shards, reports, listings and digests that another wrote, or damaged bytes.

Nothing of it becomes a path or a key before it is checked, and no reader removes what others still read well.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from persres.errors import PersresError, UnitFailures
from persres.fleet import content_store, worker
from persres.fleet import store as stores
from persres.fleet.content_store import (
    Damaged,
    blob_key,
    folder_key,
    get_input,
    get_unit,
    manifest_key,
    put_input,
    put_unit,
)
from persres.fleet.scheduler import Fleet, ShardOutcome
from persres.fleet.serialization import unit_to_json
from persres.fleet.shards import make_shard
from persres.fleet.store import FolderStore, StoreError, open_store
from persres.fleet.worker import StoredJob, read_shard, report_key, run_shard
from persres.stages.noop import NoopSpec, noop_unit
from persres.units.batches import Job
from persres.units.specs import FileRef, Spec
from persres.units.unit import MANIFEST, READY, RESULTS, Unit, finish, finish_interrupted, is_done

UNIT = Unit("noop", "n/1", NoopSpec(number=1))
EMPTY = hashlib.sha256(b"").hexdigest()
TWICE = json.dumps({"a": EMPTY, "a/b": EMPTY}).encode()
DEEP = b"[" * 100_000 + b"]" * 100_000


class ReadSpec(Spec):
    """Of a unit that reads files."""

    files: tuple[FileRef, ...]


@pytest.fixture
def store(tmp_path) -> FolderStore:
    open_store.cache_clear()
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file that nobody may touch."""
    path = tmp_path / "outside.txt"
    path.write_text("existing")
    return path


@pytest.fixture
def finished(store, tmp_path) -> dict:
    """The manifest of a unit in the store."""
    noop_unit(UNIT, tmp_path / "worker", "cpu")
    put_unit(store, UNIT, tmp_path / "worker")
    return json.loads(store.read(manifest_key(UNIT)))


def blob(store, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    store.write(blob_key(digest), data)
    return digest


NAMES = [
    "../../../outside.txt",
    "/{outside}",
    "a/../../../../outside.txt",
    "",
    ".",
    "..",
    "a\0b",
    "a\nb",
    "x" * 300,
    "a//b",
    "number.txt/../x",
]


@pytest.mark.parametrize("stage", ["noop", "unknown"])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_a_manifest_cannot_name_a_file_elsewhere(store, tmp_path, outside, finished, name, stage):
    unit = Unit(stage, "n/1", NoopSpec(number=1))
    name = name.replace("/{outside}", str(outside))
    for digest in (blob(store, b"forged"), blob(store, b"the digest of other bytes")):
        store.write(blob_key(digest), b"forged")
        manifest = finished | {"spec_hash": unit.hash, "stage": stage, "files": {name: digest}}
        store.write(manifest_key(unit), json.dumps(manifest).encode())
        with pytest.raises(Damaged, match=unit.hash):
            get_unit(store, unit, tmp_path / "scheduler")
        assert outside.read_text() == "existing" and not store.has(manifest_key(unit)), "the unit runs again"
        assert not [path for path in (tmp_path / "scheduler").rglob("*") if path.is_file()]


def changed(manifest: dict, **fields) -> bytes:
    return json.dumps(manifest | fields).encode()


MALFORMED = {
    "empty": lambda m: b"",
    "null": lambda m: b"null",
    "a list": lambda m: b"[]",
    "text": lambda m: b'"manifest"',
    "half": lambda m: json.dumps(m).encode()[:50],
    "no UTF-8": lambda m: b'{"spec_hash": "\xff\xfe"}',
    "deep": lambda m: DEEP,
    "deep facts": lambda m: json.dumps(m)[:-1].encode() + b', "facts": ' + DEEP + b"}",
    "NUL": lambda m: b"\0" * 100,
    "no hash": lambda m: json.dumps({k: v for k, v in m.items() if k != "spec_hash"}).encode(),
    "no files": lambda m: changed(m, files={}),
    "files null": lambda m: changed(m, files=None),
    "files a list": lambda m: changed(m, files=list(m["files"])),
    "a digest that is a number": lambda m: changed(m, files={"number.txt": 5}),
    "a digest that is a path": lambda m: changed(m, files={"number.txt": "../../outside.txt"}),
    "a digest too long": lambda m: changed(m, files={"number.txt": "a" * 65}),
    "another file": lambda m: changed(m, files={"other.txt": next(iter(m["files"].values()))}),
    "one file more": lambda m: changed(m, files=m["files"] | {MANIFEST: next(iter(m["files"].values()))}),
    "facts a list": lambda m: changed(m, facts=[]),
    "seconds infinite": lambda m: json.dumps(m | {"facts": {"seconds": float("inf")}}).encode(),
    "seconds text": lambda m: changed(m, facts={"seconds": "long"}),
    "another unit": lambda m: changed(m, spec_hash="0" * 16),
    "another stage": lambda m: changed(m, stage="train"),
    "a hash that is a path": lambda m: changed(m, spec_hash="../../outside"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_manifest_is_no_result_and_the_unit_runs_again(store, tmp_path, outside, finished, kind):
    data = MALFORMED[kind](finished)
    store.write(manifest_key(UNIT), data)
    with pytest.raises(Damaged) as error:
        get_unit(store, UNIT, tmp_path / "scheduler")
    assert str(error.value).isprintable() and manifest_key(UNIT) in str(error.value) and len(str(error.value)) < 1500
    assert not store.has(manifest_key(UNIT)) and not is_done(UNIT, tmp_path / "scheduler")
    folder = UNIT.folder(tmp_path / "worker")
    (folder / MANIFEST).write_bytes(data)
    assert not is_done(UNIT, tmp_path / "worker")
    with pytest.raises(PersresError):
        put_unit(store, UNIT, tmp_path / "worker")
    ready = folder.parent / "batch-0" / READY
    ready.parent.mkdir()
    for text in (data, b"[" + data + b"]"):
        ready.write_bytes(text)
        finish_interrupted("noop", tmp_path / "worker")
        assert not is_done(UNIT, tmp_path / "worker") and not ready.exists()
        ready.parent.mkdir(exist_ok=True)
    assert outside.read_text() == "existing"


@pytest.mark.parametrize("stage", ["train", "sample", "another"])
def test_a_finished_unit_has_the_files_that_its_stage_makes(tmp_path, stage):
    unit = Unit(stage, "a/b", NoopSpec(number=1))
    names = sorted(RESULTS.get(stage, {"one.txt"}))
    paths = [unit.folder(tmp_path) / name for name in names]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_text("made")
    for some in ([], paths[1:]):
        finish(unit, tmp_path, some, {"parameters": 1})
        assert not is_done(unit, tmp_path)
    finish(unit, tmp_path, paths, {"parameters": 1})
    assert is_done(unit, tmp_path)


def test_an_object_that_is_too_large_to_read_whole_blocks_nothing(store, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(stores, "MOST_BYTES", 1000)
    store.write(manifest_key(UNIT), b" " * 1001)
    with pytest.raises(Damaged, match="MiB"):
        get_unit(store, UNIT, tmp_path / "scheduler")
    assert not store.has(manifest_key(UNIT))


def test_a_result_that_was_forged_is_made_again_by_the_fleet(store, tmp_path, outside, finished):
    """The whole way: the scheduler finds the forged manifest, and a worker runs the unit."""
    finished["files"] = {str(outside): blob(store, b"forged")}
    store.write(manifest_key(UNIT), json.dumps(finished).encode())

    def send(shards, tick):
        return {shard.id: ShardOutcome() for shard in shards if run_shard(str(store.root), shard.id, tmp_path / "w2")}

    Fleet(str(store.root), send, shards=1)([UNIT], tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert is_done(UNIT, tmp_path / "scheduler") and outside.read_text() == "existing"


# Folders and inputs


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_a_listing_cannot_name_a_file_elsewhere(store, tmp_path, outside, name):
    listing = json.dumps({name.replace("/{outside}", str(outside)): blob(store, b"forged")}).encode()
    digest = hashlib.sha256(listing).hexdigest()
    store.write(folder_key(digest), listing)
    with pytest.raises(Damaged, match=digest):
        get_input(store, FileRef(path="images", digest=digest), tmp_path / "cache")
    assert outside.read_text() == "existing"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("listing", [b"", b"[]", b'{"a": 5}', b'{"a": "../x"}', b'{"a": null}', DEEP, TWICE])
def test_a_malformed_listing_is_damaged(store, tmp_path, listing):
    digest = hashlib.sha256(listing).hexdigest()
    store.write(folder_key(digest), listing)
    with pytest.raises(Damaged, match=digest):
        get_input(store, FileRef(path="images", digest=digest), tmp_path / "cache")


def test_an_empty_folder_is_an_input_too(store, tmp_path):
    (tmp_path / "images").mkdir()
    reference = FileRef.of(tmp_path / "images")
    put_input(store, reference)
    assert not list(Path(get_input(store, reference, tmp_path / "cache").path).iterdir())


@pytest.mark.parametrize(
    "digest",
    ["../../../outside.txt", "/etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "\n", "../" + "a" * 61, "\0" * 64],
)
def test_a_digest_is_a_digest_before_it_is_a_path_or_a_key(store, tmp_path, digest):
    before = sorted(tmp_path.rglob("*"))
    for use in (
        lambda: blob_key(digest),
        lambda: folder_key(digest),
        lambda: get_input(store, FileRef(path="a.png", digest=digest), tmp_path / "cache"),
        lambda: put_input(store, FileRef(path=str(tmp_path), digest=digest)),
    ):
        with pytest.raises(PersresError, match="64 hexadecimal digits"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["..", "/", "a/..", "", "a/x\ny"])
def test_an_inputs_name_is_a_name(store, tmp_path, path):
    with pytest.raises(PersresError, match="the name of an input"):
        get_input(store, FileRef(path=path, digest=blob(store, b"1")), tmp_path / "cache")


def test_a_forged_digest_in_a_shard_fails_its_unit_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "check_worker", lambda unit: None)
    units = [
        Unit("read", f"r/{i}", ReadSpec(files=(FileRef(path="a", digest=digest),)))
        for i, digest in enumerate(("../../x", blob(store, b"1")))
    ]
    stored = StoredJob(str(store.root), "s", tmp_path / "work", 0, Job(noop_unit))
    errors = stored.run_many(units, tmp_path / "work", "cpu")
    assert "hexadecimal digits" in str(errors["r/0"]) and stored.read_note(units[0])[0] == "failed"
    assert "seconds" in str(errors["r/1"]), "it was begun"
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "", "a//b", "a\0", "a\nb", "./a"])
def test_a_key_never_leads_out_of_the_store(store, tmp_path, key):
    (tmp_path / "x").write_text("existing")
    (tmp_path / "new").write_text("new")
    for use in (
        lambda: store.read(key),
        lambda: store.write(key, b"1"),
        lambda: store.write(key, b"1", only_new=True),
        lambda: store.upload(tmp_path / "new", key),
        lambda: store.download(key, tmp_path / "copy"),
        lambda: store.has(key),
        lambda: store.remove(key),
        lambda: store.link(key),
        lambda: list(store.keys(f"{key}/")),
    ):
        with pytest.raises(PersresError):
            use()
    assert (tmp_path / "x").read_text() == "existing" and sorted(os.listdir(tmp_path)) == ["new", "x"]


# Shards, reports, notes


def shard_json(**changes) -> bytes:
    shard = make_shard([unit_to_json(UNIT)], 0, "cpu", {})
    return json.dumps(shard.model_dump(mode="json") | changes).encode()


SHARDS = {
    "another id": {"id": "../../x"},
    "no id": {"id": None},
    "another stage": {"stage": "train"},
    "units null": {"units": None},
    "a unit that is text": {"units": ["n/1"]},
    "a unit without hash": {"units": [{"stage": "noop", "name": "n/1", "spec": {}}]},
    "a hash that is a path": {"units": [unit_to_json(UNIT) | {"hash": "../../../x"}]},
    "a name that is a number": {"units": [unit_to_json(UNIT) | {"name": 5}]},
    "a spec that is a list": {"units": [unit_to_json(UNIT) | {"spec": []}]},
    "a unit twice": {"units": [unit_to_json(UNIT)] * 2},
    "options that are a list": {"options": []},
    "an option that is text": {"options": {"batch": "rm -rf"}},
    "an option that is negative": {"options": {"batch": -1}},
    "attempt text": {"attempt": "first"},
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_malformed_shard_is_one_sentence(store, tmp_path, kind):
    key = f"shards/{make_shard([unit_to_json(UNIT)], 0, 'cpu', {}).id}.json"
    store.write(key, shard_json(**SHARDS[kind]))
    before = sorted(store.keys(""))
    with pytest.raises(PersresError, match="run the stage again") as error:
        run_shard(str(store.root), key[7:-5], tmp_path / "work")
    assert str(error.value).isprintable() and not (tmp_path / "work").exists() and sorted(store.keys("")) == before


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"id": "a"}', DEEP, b"\0\xff"])
def test_a_shard_that_is_no_shard(store, data):
    store.write("shards/abc.json", data)
    with pytest.raises(PersresError, match=r"shards/abc\.json is not valid"):
        read_shard(str(store.root), "abc")


@pytest.mark.parametrize("shard", ["../shards/a", "/etc/passwd", "a/b", "", "a\n", "--help", "x" * 100])
def test_a_shards_id_is_a_name(store, tmp_path, shard):
    with pytest.raises(PersresError, match=r"shard .* is not usable"):
        run_shard(str(store.root), shard, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"number": "one"},
        {"number": 1, "more": 2},
        {"number": None},
        {"settings": 5},
        {"settings": {"method": "../os"}},
    ],
)
@pytest.mark.parametrize("stage", ["noop", "train", "score", "fetch"])
def test_a_spec_that_this_code_cannot_read_is_left_unfinished(store, tmp_path, stage, spec):
    shard = make_shard([{"stage": stage, "name": "n/1", "hash": "0" * 16, "spec": spec}], 0, "cpu", {})
    store.write(shard.key, shard.model_dump_json().encode())
    report = run_shard(str(store.root), shard.id, tmp_path / "work")
    assert "deploy the same commit" in report.unfinished["0" * 16] and not report.failed


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_in_the_place_of_the_notes_blocks_no_shard(store, tmp_path, kind):
    shard = make_shard([unit_to_json(UNIT)], 0, "cpu", {})
    store.write(shard.key, shard.model_dump_json().encode())
    path = tmp_path / "work" / "shards" / shard.id
    path.parent.mkdir(parents=True)
    {
        "file": lambda: path.write_text("stray"),
        "folder": lambda: path.mkdir(),
        "link": lambda: path.symlink_to(tmp_path),
    }[kind]()
    report = run_shard(str(store.root), shard.id, tmp_path / "work")
    assert not report.failed and not report.unfinished and store.has(manifest_key(UNIT))


def test_options_that_the_job_does_not_have_are_left_unfinished(store, tmp_path):
    shard = make_shard([unit_to_json(UNIT)], 0, "cpu", {"offload": True})
    store.write(shard.key, shard.model_dump_json().encode())
    report = run_shard(str(store.root), shard.id, tmp_path / "work")
    assert "does not have its options (offload)" in report.unfinished[UNIT.hash]


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'{"failed": []}',
        b'{"failed": {"0": 1}}',
        b'{"failed": {"../x": "a"}}',
        b'{"failed"',
        DEEP,
        b"\xff",
    ],
)
def test_a_damaged_report_costs_reasons_alone(store, tmp_path, data):
    def send(shards, tick):
        for shard in shards:
            store.write(report_key(shard.id), data)
        return {shard.id: ShardOutcome() for shard in shards}

    with pytest.raises(UnitFailures, match=r"reports/.* is not valid") as error:
        Fleet(str(store.root), send, shards=1)([UNIT], tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert "not finished after 3 attempts" in str(error.value)


def test_a_workers_reason_is_printed_without_escapes_and_secrets(store, tmp_path):
    def send(shards, tick):
        (shard,) = shards
        reason = "\x1b[2J https://me:secret@host/x failed"
        store.write(report_key(shard.id), json.dumps({"failed": {UNIT.hash: reason}}).encode())
        return {shard.id: ShardOutcome()}

    with pytest.raises(UnitFailures) as error:
        Fleet(str(store.root), send, shards=1)([UNIT], tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert (
        "\x1b" not in str(error.value)
        and "secret" not in str(error.value)
        and "https://host/x failed" in str(error.value)
    )


@pytest.mark.parametrize(
    "note", ["null", "[]", '["as_json", "x"]', '["failed"]', '["failed", 5]', '{"a": 1}', "[" * 50_000, "\0"]
)
def test_a_damaged_note_is_none(store, tmp_path, note):
    stored = StoredJob(str(store.root), "s", tmp_path, 0)
    stored.notes.mkdir(parents=True)
    (stored.notes / f"{UNIT.hash}.json").write_text(note)
    assert stored.read_note(UNIT) is None


# A reader whose own memory, disk or network is bad


class BadReader(FolderStore):
    """Wrong bytes for the first ``times`` reads: each other ones, or the same."""

    def __init__(self, root: Path, times: int, same: bool = False) -> None:
        super().__init__(root)
        self.times, self.same = times, same

    def spoil(self, data: bytes) -> bytes:
        self.times -= 1
        return data if self.times < 0 else data + (b"!" if self.same else str(self.times).encode())

    def read(self, key):
        data = super().read(key)
        return None if data is None else self.spoil(data)

    def download(self, key, path):
        if not super().download(key, path):
            return False
        path.write_bytes(self.spoil(path.read_bytes()))
        return True


@pytest.fixture
def shared(store, tmp_path, finished) -> tuple[FileRef, FileRef]:
    """A file and a folder in the store."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"photo")
    references = FileRef.of(folder / "a.png"), FileRef.of(folder)
    for reference in references:
        put_input(store, reference)
    return references


def test_one_bad_read_is_read_again(store, tmp_path, shared):
    for number, reference in enumerate(shared):
        bad = BadReader(store.root, 1)
        assert FileRef.of(Path(get_input(bad, reference, tmp_path / f"cache{number}").path)).digest == reference.digest
    assert get_unit(BadReader(store.root, 1), UNIT, tmp_path / "scheduler") and is_done(UNIT, tmp_path / "scheduler")


def test_a_reader_that_reads_badly_removes_nothing(store, tmp_path, shared, monkeypatch):
    before = {key: store.read(key) for key in store.keys("")}
    for number, reference in enumerate(shared):
        with pytest.raises(Damaged, match=r"differently each time on .*; check its memory"):
            get_input(BadReader(store.root, 100), reference, tmp_path / f"cache{number}")
    with pytest.raises(Damaged, match="nothing is removed"):
        get_unit(BadReader(store.root, 100), UNIT, tmp_path / "scheduler")
    real = content_store.digest_file
    wrong = iter("0123456789abcdef")
    monkeypatch.setattr(content_store, "digest_file", lambda path: real(path)[:-1] + next(wrong) * 2)  # memory
    with pytest.raises(Damaged, match="nothing is removed"):
        get_unit(store, UNIT, tmp_path / "other")
    assert {key: store.read(key) for key in store.keys("")} == before
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_what_is_wrong_twice_in_the_same_way_is_removed_and_uploaded_again(store, tmp_path, shared):
    for reference, key in zip(shared, (blob_key(shared[0].digest), folder_key(shared[1].digest)), strict=True):
        store.write(key, b"other bytes")
        with pytest.raises(Damaged, match="was damaged in the store and is removed"):
            get_input(store, reference, tmp_path / "cache")
        assert not store.has(key)
        put_input(store, reference)
        get_input(store, reference, tmp_path / "cache")


def test_a_store_that_fails_is_no_damage(store, tmp_path, finished, monkeypatch):
    def fails(key):
        raise StoreError("away")

    monkeypatch.setattr(store, "read", fails)
    with pytest.raises(StoreError, match="away"):
        get_unit(store, UNIT, tmp_path / "scheduler")
    monkeypatch.undo()
    assert store.has(manifest_key(UNIT))
