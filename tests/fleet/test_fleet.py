"""The fleet without Prefect: units through a store, shards run by workers in folders of their own, and what strikes them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from persres.errors import PersresError, UnitFailures
from persres.fleet import worker
from persres.fleet.content_store import Damaged, blob_key, get_input, get_unit, manifest_key, put_input, put_unit
from persres.fleet.scheduler import Fleet, ShardOutcome
from persres.fleet.serialization import UnfitWorkerError, check_worker, unit_from_json, unit_to_json
from persres.fleet.shards import estimate_seconds, group_by_cost
from persres.fleet.store import open_store
from persres.fleet.worker import StoredJob, WorkerSettings, run_shard
from persres.images import unzip_bytes
from persres.planning.estimate import read_measured_seconds
from persres.stages.jobs import JOB_TYPES, job_type
from persres.stages.noop import NoopSpec, noop_unit
from persres.units.batches import Job
from persres.units.checkpoints import read_tensors
from persres.units.files import digest_folder
from persres.units.pool import run_units
from persres.units.specs import FileRef
from persres.units.unit import MANIFEST, READY, RESULTS, Unit, batch_folder, facts, finish, is_done
from persres.workflow import load_context, run_stage
from tests.support import fleet_demo
from tests.support.fleet_demo import compared
from tests.support.s3_server import BUCKET, Server, credentials


def noops(count: int, start: int = 0, seconds: float = 0.0) -> list[Unit]:
    return [Unit("noop", f"n/{i}", NoopSpec(number=i, seconds=seconds)) for i in range(start, start + count)]


@pytest.fixture(scope="module")
def server():
    served = Server()
    yield served
    served.stop()


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path, server, monkeypatch):
    """A store of each kind, empty."""
    open_store.cache_clear()
    if request.param == "folder":
        yield str(tmp_path / "store")
        return
    for name, value in credentials(server.endpoint).items():
        monkeypatch.setenv(name, value)
    server.refuse = lambda method, path: None
    server.client().create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}/{tmp_path.name}"
    server.refuse = lambda method, path: None


class Local:
    """Sends shards to workers of this process, each in a work folder of its own; ``strike`` may come between."""

    def __init__(self, url: str, root: Path, workers: int = 2) -> None:
        self.url, self.root, self.workers, self.rounds = url, root, workers, []
        self.strike = lambda shard: None

    def __call__(self, shards, tick):
        self.rounds.append(shards)
        ended = {}
        for number, shard in enumerate(shards):
            ended[shard.id] = ShardOutcome(self.strike(shard), log=f"http://server/runs/{number}")
            if ended[shard.id].crash is None:
                run_shard(self.url, shard.id, self.root / f"worker{number % self.workers}")
            tick()
        return ended


def test_units_run_elsewhere_and_come_back_whole(url, tmp_path):
    send, units, reports = Local(url, tmp_path), noops(7), []
    fleet = Fleet(url, send, shards=3, report=reports.append)
    fleet(units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert all(is_done(unit, tmp_path / "scheduler") for unit in units)
    assert [len(shard.units) for shard in send.rounds[0]] == [3, 2, 2] and len(send.rounds) == 1
    assert (
        (reports[0].done, reports[-1].done, reports[-1].total) == (0, 7, 7)
        and reports[-1].per_hour > 0
        and reports[-1].left == 0
    )
    fleet(units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert len(send.rounds) == 1, "what is done here is not sent"
    fleet(noops(8), tmp_path / "another scheduler", Job(noop_unit), 0, "cpu")
    assert [len(shard.units) for shard in send.rounds[1]] == [1], "what the store has is not sent"
    assert not list(open_store(url).keys("started/"))


def test_a_worker_that_dies_costs_the_unit_at_hand_alone(url, tmp_path):
    units, send = noops(6), Local(url, tmp_path)

    def dies_at_the_second(shard):
        if len(send.rounds) > 1:
            return None
        local = [unit_from_json(raw) for raw in shard.units]
        StoredJob(url, shard.id, tmp_path / "dead", 0, Job(noop_unit)).run(local[0], tmp_path / "dead", "cpu")
        open_store(url).write(worker.mark_key(local[1], shard.id), b"at it")
        return "killed"

    send.strike = dies_at_the_second
    Fleet(url, send, shards=1)(units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    sizes = sorted(len(shard.units) for shard in send.rounds[1])
    assert sizes == [1, 4], "the suspect goes alone, what was finished is not sent"
    assert not list(open_store(url).keys("started/"))


def test_a_unit_that_kills_its_worker_twice_is_set_aside_and_named(url, tmp_path):
    units, send = noops(4), Local(url, tmp_path)

    def deadly(shard):
        bad = [unit for unit in map(unit_from_json, shard.units) if unit.name == "n/2"]
        for unit in bad:
            open_store(url).write(worker.mark_key(unit, shard.id), b"at it")
        return "Crashed" if bad else None

    send.strike = deadly
    with pytest.raises(UnitFailures) as caught:
        Fleet(url, send, shards=2, attempts=5)(units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert list(caught.value.failures) == ["n/2"] and len(send.rounds) == 2
    assert "set aside" in str(caught.value) and "(log: http://server/runs/" in str(caught.value)
    assert sum(is_done(unit, tmp_path / "scheduler") for unit in units) == 3


def test_workers_that_always_die_end_after_so_many_attempts(url, tmp_path):
    send = Local(url, tmp_path)
    send.strike = lambda shard: "Crashed: no worker"
    with pytest.raises(UnitFailures, match="not finished after 3 attempts: Crashed: no worker"):
        Fleet(url, send, shards=1)(noops(2), tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert len(send.rounds) == 3


def test_a_damaged_object_is_an_error_with_its_name_never_a_result(url, tmp_path):
    store, (unit, other) = open_store(url), noops(2)
    for done in (unit, other):
        noop_unit(done, tmp_path / "worker", "cpu")
        put_unit(store, done, tmp_path / "worker")
    (digest,) = json.loads(store.read(manifest_key(unit)))["files"].values()
    store.write(blob_key(digest), b"something else")
    with pytest.raises(Damaged, match=digest):
        get_unit(store, unit, tmp_path / "scheduler")
    assert (
        not is_done(unit, tmp_path / "scheduler")
        and not store.has(blob_key(digest))
        and not store.has(manifest_key(unit))
    )
    store.write(manifest_key(other), b'{"spec_hash": "an')
    send = Local(url, tmp_path)
    Fleet(url, send, shards=1)([unit, other], tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert (unit.folder(tmp_path / "scheduler") / "number.txt").read_text() == "0\n", "made again"


def test_inputs_come_by_digest_files_and_folders(url, tmp_path):
    store, folder = open_store(url), tmp_path / "weights"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a"), (folder / "inner" / "b.json").write_text("{}")
    for path in (folder, folder / "a.bin"):
        reference = FileRef.of(path)
        put_input(store, reference)
        here = get_input(store, reference, tmp_path / "cache")
        assert here.digest == reference.digest and FileRef.of(Path(here.path)).digest == reference.digest
        assert Path(here.path).name == path.name and here.path != reference.path
    reference = FileRef.of(folder / "a.bin")
    (folder / "a.bin").write_bytes(b"changed")
    store.remove(blob_key(reference.digest))
    with pytest.raises(PersresError, match=r"a\.bin has changed since"):
        put_input(store, reference)
    store.write(blob_key(reference.digest), b"other bytes")
    with pytest.raises(Damaged, match=reference.digest):
        get_input(store, reference, tmp_path / "fresh")
    assert not (tmp_path / "fresh" / reference.digest[:2] / reference.digest / "a.bin").exists()


def test_two_writers_of_a_unit_harm_nothing(url, tmp_path):
    """Another machine's last bits may differ: then the first manifest stands, with its own files."""
    store, (unit,) = open_store(url), noops(1)
    for who, text in (("first", "0\n"), ("second", "0.0000001\n")):
        path = unit.folder(tmp_path / who) / "number.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        finish(unit, tmp_path / who, [path], {})
        put_unit(store, unit, tmp_path / who)
    assert get_unit(store, unit, tmp_path / "scheduler")
    assert (unit.folder(tmp_path / "scheduler") / "number.txt").read_text() == "0\n"


def test_a_worker_of_another_commit_refuses(tmp_path, monkeypatch):
    (unit,) = noops(1)
    raw = unit_to_json(unit)
    assert unit_from_json(json.loads(json.dumps(raw))) == unit
    with pytest.raises(UnfitWorkerError, match="reads another unit"):
        unit_from_json(raw | {"hash": "0" * 16})
    with pytest.raises(UnfitWorkerError, match="cannot read the unit"):
        unit_from_json(raw | {"spec": raw["spec"] | {"new_setting": 1}})


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_refused_manifest_is_sent_again_and_nothing_else(server, url, tmp_path):
    refused = []

    def deny_one_put(method, path):
        if method == "PUT" and "/units/" in path and not refused:
            refused.append(path)
            return "deny"
        return None

    server.refuse = deny_one_put
    send = Local(url, tmp_path)
    Fleet(url, send, shards=1)(noops(3), tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert refused and len(send.rounds) == 2 and [len(s.units) for s in send.rounds[1]] == [1]


def test_a_failed_run_without_a_report_shows_its_message(tmp_path):
    def send(shards, tick):
        return {shard.id: ShardOutcome(None, "http://server/runs/1", "S3 reports AccessDenied") for shard in shards}

    with pytest.raises(UnitFailures, match=r"ended without it: S3 reports AccessDenied \(log: http://server/runs/1\)"):
        Fleet(str(tmp_path / "store"), send, shards=1)(noops(1), tmp_path / "scheduler", Job(noop_unit), 0, "cpu")


def test_shards_are_alike_in_cost(tmp_path):
    units, seconds = noops(5), {}
    for unit, cost in zip(units, (9.0, 5.0, 4.0, 3.0, 3.0), strict=True):
        seconds[unit.hash] = cost
    totals = sorted(sum(seconds[u.hash] for u in some) for some in group_by_cost(units, seconds, 2))
    assert totals == [12.0, 12.0] and len(group_by_cost(units[:1], seconds, 8)) == 1


def test_a_manifest_that_says_nothing_of_cost_spoils_no_estimate(tmp_path):
    done, unit = noops(2)
    noop_unit(done, tmp_path, "cpu")
    path = done.folder(tmp_path) / MANIFEST
    for run_facts in ({}, {"seconds": 0.0}, {"seconds": "long"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": run_facts}))
        assert estimate_seconds([unit], tmp_path, read_measured_seconds(Path("none")))[unit.hash] > 0
    path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": {"seconds": 7.0}}))
    assert estimate_seconds([unit], tmp_path, read_measured_seconds(Path("none")))[unit.hash] == 7.0
    path.write_text("{")
    assert estimate_seconds([unit], tmp_path, read_measured_seconds(Path("none")))[unit.hash] > 0


@pytest.mark.parametrize("grace,finished", [(30.0, 1), (0.2, 0)])
def test_sigterm_drains_a_worker(tmp_path, grace, finished):
    """It finishes the unit at hand within the grace time and begins no other; past it, it ends."""
    open_store.cache_clear()
    url, units = str(tmp_path / "store"), noops(3, seconds=1.0)
    ended = {}

    def send(shards, tick):
        (shard,) = shards
        process = multiprocessing.get_context("spawn").Process(
            target=run_shard, args=(url, shard.id, tmp_path / "worker", WorkerSettings(grace=grace))
        )
        process.start()
        while not list(open_store(url).keys("started/")):
            process.join(0.05)
            assert process.exitcode is None, "it ended before it began"
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGTERM)  # told twice is told once
        process.join()
        ended[shard.id] = process.exitcode
        return {shard.id: ShardOutcome(None if process.exitcode == 0 else "drained")}

    with pytest.raises(UnitFailures) as caught:
        Fleet(url, send, shards=1, attempts=1)(units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu")
    assert sum(is_done(unit, tmp_path / "scheduler") for unit in units) == finished
    assert list(ended.values()) == ([0] if finished else [143])
    assert ("told to stop" if finished else "drained") in str(caught.value)


@pytest.fixture(scope="module")
def chain(tiny_pipeline, tiny_encoders, tmp_path_factory):
    """The whole chain on tiny models, here and through a store with two workers."""
    import yaml

    open_store.cache_clear()
    folder = tmp_path_factory.mktemp("fleet")
    profile = {
        "base": {"model": str(tiny_pipeline), "resolution": 32},
        "encoders": tiny_encoders,
        "fetch": {"dataset": "miniworld", "concepts": ["heart_mug", "star_robot"], "references": 3, "held_out": 0},
        "train": {"steps": 2, "class_images": {"steps": 2}, "variants": {"ours": {}, "prior": {"num_class_images": 2}}},
        "sample": {"steps": 2, "images_per_prompt": 1, "prompts": 4,
                   "configs": {"base": {}, "ours": {"variant": "ours", "lag": True}, "prior": {"variant": "prior"}}},
        # together a worker's shard would be another batch than here, with other last bits
        "runtime": {"workers": 1, "device": "cpu", "sample_batch": 4, "concepts_per_batch": 1},
        "tables": {"bootstrap": 200},
    }  # fmt: skip
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": profile}, sort_keys=False))
    url = str(folder / "store")
    send = Local(url, folder / "workers")
    contexts, monkeypatch = {}, pytest.MonkeyPatch()
    for name in ("here", "fleet"):
        (folder / name).mkdir()
        monkeypatch.chdir(folder / name)  # so that both tell their files by the same names
        context = load_context(folder / "params.yaml", None, "data", "work")
        if name == "fleet":
            context = replace(context, run_units=Fleet(url, send, shards=2))
        contexts[name] = context
        for stage in ("fetch", "macro_class", "train", "sample", "score", "tables"):
            run_stage(stage, context)
        contexts[name] = replace(context, data=folder / name / "data", work=folder / name / "work")
    monkeypatch.undo()
    return contexts, send


def test_the_fleets_tables_are_the_local_runs(chain, monkeypatch, tmp_path):
    contexts, send = chain
    assert {shard.stage for shards in send.rounds for shard in shards} == {"class_images", "train", "sample", "score"}
    assert not (contexts["fleet"].work / "train" / "inputs").exists()
    assert digest_folder(contexts["here"].data / "learned") == digest_folder(contexts["fleet"].data / "learned")
    here, there = (contexts[name].data.parent for name in ("here", "fleet"))
    differences = compared(here, there)
    assert {"scores", "table1", "methods"} <= set(differences) and max(differences.values()) <= 1e-5
    monkeypatch.setattr(fleet_demo, "TOLERANCE", 1e-9)
    path = shutil.copytree(there / "data", tmp_path / "data") / "scores" / "scores.parquet"
    rows = pd.read_parquet(path)
    rows.loc[0, rows.select_dtypes("float").columns[0]] += 1e-6
    rows.to_parquet(path)
    with pytest.raises(AssertionError, match=r"scores\.parquet"):
        compared(there, tmp_path)


def test_a_poisoned_photo_is_named_as_the_scheduler_knows_it_and_the_others_are_learned(chain, monkeypatch, tmp_path):
    context = replace(chain[0]["fleet"], work=tmp_path / "work", data=tmp_path / "data")
    shutil.copytree(chain[0]["fleet"].data, context.data)
    photo = context.data / "concepts" / "heart_mug" / "images" / "000.png"
    photo.write_bytes(b"poison")
    url = str(tmp_path / "store")
    context = replace(context, run_units=Fleet(url, Local(url, tmp_path / "workers"), shards=2))
    with pytest.raises(UnitFailures) as caught:
        run_stage("train", context)
    assert set(caught.value.failures) == {"ours/heart_mug", "prior/heart_mug"} and str(photo) in str(caught.value)
    assert "inputs" not in str(caught.value) and "(log: http://server/runs/" in str(caught.value)
    done = list((context.work / "train").glob(f"*/{MANIFEST}"))
    assert len(done) == 2, "the other concept's"


def batched_context(chain, tmp_path, shards: int):
    """The chain's context with a fleet whose workers learn concepts together, in folders of the test's own."""
    context, url = chain[0]["fleet"], str(tmp_path / "store")
    open_store.cache_clear()
    shutil.copytree(context.data, tmp_path / "data")
    profile = context.profile.model_copy(
        update={"runtime": context.profile.runtime.model_copy(update={"concepts_per_batch": "auto"})}
    )
    send = Local(url, tmp_path / "workers", workers=1)
    run_units = Fleet(url, send, shards=shards)
    return (
        replace(context, profile=profile, work=tmp_path / "work", data=tmp_path / "data", run_units=run_units),
        send,
        url,
    )


def test_a_worker_trains_its_shard_in_batches_and_uploads_each_unit(chain, tmp_path, monkeypatch):
    context, send, url = batched_context(chain, tmp_path, 1)
    marked, real = [], worker.run_batch

    def run_batch(*args):
        marked.append(len(list(open_store(url).keys("started/train/"))))
        return real(*args)

    monkeypatch.setattr(worker, "run_batch", run_batch)
    run_stage("train", context)
    assert sum(shard.stage == "train" for shards in send.rounds for shard in shards) == 1
    assert [count for count in marked if count] == [2, 2], "each variant's two concepts, every unit marked"
    assert not list(open_store(url).keys("started/"))
    manifests = [json.loads(p.read_text()) for p in (context.work / "train").glob(f"*/{MANIFEST}")]
    assert {m["name"]: m["facts"]["units_per_batch"] for m in manifests} == dict.fromkeys(
        ("ours/heart_mug", "ours/star_robot", "prior/heart_mug", "prior/star_robot"), 2
    )
    for learned in sorted((context.data / "learned").rglob("*.safetensors")):
        alone = chain[0]["fleet"].data / learned.relative_to(context.data)
        for key, value in read_tensors(alone)[0].items():
            torch.testing.assert_close(read_tensors(learned)[0][key], value, atol=1e-4, rtol=1e-3)


def test_what_a_dead_worker_had_noted_of_a_batch_is_put_back_by_the_next(chain, tmp_path):
    """Killed between the manifests of a batch: what was made is not made again."""
    context, send, url = batched_context(chain, tmp_path, 1)
    run_stage("train", context)
    (shard,) = [shard for shards in send.rounds for shard in shards if shard.stage == "train"]
    work, units = tmp_path / "workers" / "worker0", [unit_from_json(raw) for raw in shard.units]
    mine = [unit for unit in units if unit.name.startswith("ours/")]
    paths = [unit.folder(work) / MANIFEST for unit in mine]
    ready = batch_folder(mine, work) / READY
    ready.parent.mkdir()
    ready.write_text(json.dumps([json.loads(path.read_text()) for path in paths]))
    stamps = [(unit.folder(work) / "learned.safetensors").stat().st_mtime_ns for unit in mine]
    for unit, path in zip(mine, paths, strict=True):
        path.unlink(), open_store(url).remove(manifest_key(unit))
    report = run_shard(url, shard.id, work)
    assert not report.failed and not report.unfinished
    assert all(open_store(url).has(manifest_key(unit)) for unit in mine)
    assert [(unit.folder(work) / "learned.safetensors").stat().st_mtime_ns for unit in mine] == stamps


def test_a_poisoned_photo_leaves_its_batch_to_the_others(chain, tmp_path):
    context, _, url = batched_context(chain, tmp_path, 1)
    photo = context.data / "concepts" / "heart_mug" / "images" / "000.png"
    photo.write_bytes(b"poison")
    with pytest.raises(UnitFailures) as caught:
        run_stage("train", context)
    assert set(caught.value.failures) == {"ours/heart_mug", "prior/heart_mug"} and str(photo) in str(caught.value)
    assert len(list((context.work / "train").glob(f"*/{MANIFEST}"))) == 2 and "inputs" not in str(caught.value)
    assert not list(open_store(url).keys("started/"))


def test_a_drained_worker_starts_no_batch(tmp_path):
    stored = StoredJob(str(tmp_path / "store"), "s", tmp_path / "work", 0)
    stored.notes.mkdir(parents=True)
    (stored.notes / "drain").touch()
    units = noops(2)
    errors = stored.run_many(units, tmp_path / "work", "cpu")
    assert set(errors) == {"n/0", "n/1"} and all(isinstance(error, UnfitWorkerError) for error in errors.values())
    assert [stored.read_note(unit)[0] for unit in units] == ["unfinished", "unfinished"]


def test_every_unit_of_the_chain_is_read_back_as_it_was_and_fits(chain):
    _, send = chain
    for shard in (shard for shards in send.rounds for shard in shards):
        for raw in shard.units:
            unit = unit_from_json(json.loads(json.dumps(raw)))
            check_worker(unit)
            assert unit_to_json(unit) == raw
            if "code" in raw["spec"]:
                other = Unit(unit.stage, unit.name, unit.spec.model_copy(update={"code": "0" * 16}))
                with pytest.raises(UnfitWorkerError, match="deploy the same commit"):
                    check_worker(other)


def test_costs_are_estimated_from_what_was_measured_else_from_the_plan(chain, tmp_path):
    contexts, send = chain
    units = [unit_from_json(raw) for shards in send.rounds for s in shards if s.stage == "sample" for raw in s.units]
    known = estimate_seconds(units, contexts["fleet"].work, read_measured_seconds(Path("none")))
    planned = estimate_seconds(units, tmp_path, read_measured_seconds(Path("none")))
    assert all(seconds > 0 for seconds in known.values()) and known != planned
    sizes = {unit.hash: JOB_TYPES["sample"].cost(unit.spec) for unit in units}
    assert len({round(planned[key] / sizes[key], 9) for key in sizes}) == 1, "one rate for all, from the plan"
    manifests = [json.loads(p.read_text()) for p in (contexts["fleet"].work / "sample").glob(f"*/{MANIFEST}")]
    base = next(m for m in manifests if m["name"] == "base/heart_mug")
    assert base["facts"]["seconds"] > 0


def test_images_do_not_depend_on_a_halved_batch(chain, monkeypatch, tmp_path):
    """A model with memory for two images gives those of one with memory for four, without LAG and with its masks."""
    from diffusers import UNet2DConditionModel  # here: the workers that tests start read this file too

    from persres.methods.common.sample_units import ARCHIVE, sample_unit
    from persres.stages.sample import sample_units

    context = chain[0]["here"]
    monkeypatch.chdir(context.data.parent)
    real, batch_sizes = UNet2DConditionModel.forward, []

    def small(self, sample, *args, **kwargs):
        batch_sizes.append(len(sample))
        if len(sample) > 2 * 2:  # with and without the prompt
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", small)
    units = [unit for unit in sample_units(context) if unit.name in ("base/heart_mug", "ours/heart_mug")]
    run_units(units, tmp_path, partial(sample_unit, batch=4), 1, "cpu")
    assert max(batch_sizes) == 2 * 4 and len(units) == 2
    for unit in units:
        assert facts(unit, tmp_path)["batch_halved_to"] == 2
        whole, halved = (unzip_bytes(unit.folder(work) / ARCHIVE) for work in (context.work, tmp_path))
        assert list(whole) == list(halved) and len({whole[name] for name in whole if "/" not in name}) == 4
        for name in whole:
            one, two = (np.asarray(Image.open(BytesIO(archive[name])), dtype=int) for archive in (whole, halved))
            assert np.abs(one - two).max() <= 1, name


def test_a_stage_without_a_job_type_is_refused(tmp_path):
    with pytest.raises(PersresError, match=r"stages/jobs\.py"):
        job_type("fetch")


def test_every_stage_with_units_knows_its_files():
    from persres.methods.common import sample_units, train_units
    from persres.metrics import nouns, score_units
    from persres.training import class_images

    assert set(JOB_TYPES) <= set(RESULTS)
    made = {
        "train": {train_units.LEARNED, train_units.LOG}, "sample": {sample_units.ARCHIVE}, "score": {score_units.FILE},
        "nouns": {nouns.FILE}, "class_images": {class_images.ARCHIVE}, "noop": {"number.txt"},
    }  # fmt: skip
    assert {stage: RESULTS[stage] for stage in made} == made
