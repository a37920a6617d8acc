"""Batched training: each concept's result equals a separate run, with its own folder and failure; kills and resume."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from persres.config.schema import Base, Runtime
from persres.errors import PersresError, UnitFailures
from persres.images import png_bytes, zip_bytes
from persres.methods import ours
from persres.methods.common import batched_training
from persres.methods.common import train_units as train_module
from persres.methods.common.base import TrainingResult
from persres.methods.common.batched_training import batch_key, concepts_that_fit, training_job
from persres.methods.common.registry import can_train_batched, method_named
from persres.methods.common.train_units import _share, train_unit, train_units
from persres.methods.ours import Ours, _concept_log
from persres.residuals.header import read_header
from persres.training import residual_training
from persres.units import memory_budget as memory
from persres.units import unit as saved
from persres.units.batches import BATCH_SIZES, Job, Run, group_units, plan_batches, split_evenly
from persres.units.checkpoints import read_tensors
from persres.units.memory_budget import concepts_within
from persres.units.oom_retry import run_batch
from persres.units.pool import run_units
from persres.units.specs import FileRef, TrainSpec
from persres.units.unit import MANIFEST, READY, Unit, batch_folder, facts, finish_interrupted, is_done
from persres.workflow import load_context, run_stage
from tests.support.processes import in_a_fork
from tests.training.test_early_stopping import stopping_early
from tests.training.test_training import concept, train_bank

MINI = Base(model="package:miniworld/weights/sd", resolution=64)
# Sums over another batch differ in their last bits; AdamW divides by the root of a mean square, which lifts the smallest of them.
# A step moves a number by up to lr = 1e-3; this is a tenth of it. Measured: 2e-6 after 4 steps of batch 1, 2e-5 after 12 of batch 4.
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def photos(folder: Path, name: str, count: int) -> tuple[FileRef, ...]:
    """Noise in a colour of the concept, 64 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, files = torch.Generator().manual_seed(sum(map(ord, name))), []
    for number in range(count):
        pixels = (torch.rand((64, 64, 3), generator=draw) * 80 + torch.rand(3, generator=draw) * 170).byte().numpy()
        path = folder / f"{name}{number}.png"
        path.write_bytes(png_bytes(Image.fromarray(pixels)))
        files.append(FileRef.of(path))
    return tuple(files)


def units(folder: Path, base: Base, names=("mug", "robot", "cat"), class_images=None, variant="ours", **changes):
    """Concepts with one, two, three … photos."""
    settings = Ours(**({"steps": 4, "batch_size": 1, "checkpoint_every": 2} | changes))
    return [
        Unit("train", f"{variant}/{name}", TrainSpec(
            base=base, model="a model", concept=name, variant=variant, settings=settings, macro_class=name,
            photos=photos(folder / "photos", name, number), class_images=class_images, code="x"))
        for number, name in enumerate(names, 1)
    ]  # fmt: skip


def tensors(unit: Unit, work: Path) -> dict[str, torch.Tensor]:
    return read_tensors(unit.folder(work) / "learned.safetensors")[0]


def same_bits(units: list[Unit], work: Path, other: Path) -> bool:
    return all(
        (unit.folder(work) / name).read_bytes() == (unit.folder(other) / name).read_bytes()
        for unit in units
        for name in ("learned.safetensors", "log.jsonl")
    )


def log_of(unit: Unit, work: Path) -> list[dict]:
    return [json.loads(line) for line in (unit.folder(work) / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("prior", [False, True])
def test_three_concepts_in_one_batch_equal_three_alone(tmp_path, prior):
    """On the embedded model, with one, two and three photos, without and with class images; the tolerance is :data:`CLOSE`."""
    archive = None
    if prior:
        draw = torch.Generator().manual_seed(9)
        image = Image.fromarray((torch.rand((64, 64, 3), generator=draw) * 255).byte().numpy())
        (tmp_path / "images.zip").write_bytes(zip_bytes({"0.png": png_bytes(image)}))
        archive = FileRef.of(tmp_path / "images.zip")
    todo = units(tmp_path, MINI, class_images=archive, num_class_images=1 if prior else 0)
    assert not train_units(todo, tmp_path / "batched", "cpu")
    seen = [facts(unit, tmp_path / "batched") for unit in todo]
    assert {one["units_per_batch"] for one in seen} == {3} and len({one["seconds"] for one in seen}) == 1
    assert all(one["steps"] == one["of_steps"] == 4 and one["peak_mib"] > 0 for one in seen)
    assert not list((tmp_path / "batched" / "train").glob("together-*")), "nothing is left of the batch"
    for unit in todo:
        train_unit(unit, tmp_path / "alone", "cpu")
        assert is_done(unit, tmp_path / "batched")
        one, other = tensors(unit, tmp_path / "batched"), tensors(unit, tmp_path / "alone")
        assert set(one) == set(other)
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], **CLOSE)
        assert read_header(unit.folder(tmp_path / "batched") / "learned.safetensors") == read_header(
            unit.folder(tmp_path / "alone") / "learned.safetensors"
        )
        for row, alone in zip(log_of(unit, tmp_path / "batched"), log_of(unit, tmp_path / "alone"), strict=True):
            assert row.keys() == alone.keys() and row["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    start, end = (tensors(unit, tmp_path / "batched") for unit in todo[:2])
    assert any(not torch.equal(start[key], end[key]) for key in start), "each concept has its own"


def test_a_log_ends_where_its_concept_stops_and_does_not_show_the_others(unet):
    concepts, variant = [concept("mug", 0), concept("cat", 2)], stopping_early(early_stop_below=0.58)
    rows = train_bank(unet, concepts, variant)[1]
    logs = [_concept_log(rows, index) for index in range(2)]
    assert len({len(log) for log in logs}) == 2, "with one common end this test would prove nothing"
    for log, one in zip(logs, concepts, strict=True):
        alone = _concept_log(train_bank(unet, [one], variant)[1], 0)
        assert [row.keys() for row in log] == [row.keys() for row in alone]
        assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in alone], rel=1e-4)
        assert "stopped" in log[-1]


def test_a_unit_that_stopped_early_counts_its_steps_only():
    """Costs recognise a whole run by its number of steps."""
    short, long = (TrainingResult(7, [{}] * steps, lambda path, info: None) for steps in (20, 50))
    seen = {"seconds": 30.0, "steps": 50}
    assert [_share(seen, [short, long], one)["steps"] for one in (short, long)] == [20, 50]
    resumed = _share(seen | {"steps": 35}, [short, long], short)  # from step 15
    assert (resumed["steps"], resumed["of_steps"], resumed["seconds"], resumed["units_per_batch"]) == (5, 20, 15.0, 2)
    assert _share(seen | {"steps": 10}, [short, long], short)["steps"] == 0
    assert _share({"seconds": 1.0}, [short, long], long)["steps"] == 0, "killed after the last step"


def train_all(todo: list[Unit], work: Path) -> None:
    run_units(todo, work, training_job(todo, concepts_per_batch=3), 1, "cpu")


def train_and_die(todo: list[Unit], work: Path) -> None:
    """Killed after the first of its manifests."""
    write = saved.write_atomic

    def write_and_die(path, data):
        write(path, data)
        if path.name == saved.MANIFEST:
            os.kill(os.getpid(), signal.SIGKILL)

    saved.write_atomic = write_and_die
    train_all(todo, work)


def test_a_killed_batch_goes_on_to_the_same_bits(tmp_path):
    todo, whole, killed = units(tmp_path, MINI, steps=14), tmp_path / "whole", tmp_path / "killed"
    run_units(todo, whole, training_job(todo, concepts_per_batch=3), 1, "cpu")
    process = in_a_fork(train_all, todo, killed)
    checkpoint, deadline = batch_folder(todo, killed) / "checkpoint.safetensors", time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert checkpoint.exists() and not any(is_done(unit, killed) for unit in todo), (
        "the kill must fall within the batch"
    )
    run_units(todo, killed, training_job(todo, concepts_per_batch=3), 1, "cpu")
    assert same_bits(todo, killed, whole)
    assert all(0 < facts(unit, killed)["steps"] < facts(unit, killed)["of_steps"] == 14 for unit in todo), "it went on"
    assert not checkpoint.parent.exists()


def never(*_args) -> None:
    raise AssertionError("a finished unit must not train again")


def test_a_batch_killed_between_its_manifests_is_not_trained_again(tmp_path):
    todo, whole, killed = units(tmp_path, MINI, steps=3), tmp_path / "whole", tmp_path / "killed"
    run_units(todo, whole, training_job(todo, concepts_per_batch=3), 1, "cpu")
    process = in_a_fork(train_and_die, todo, killed)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [is_done(unit, killed) for unit in todo] == [True, False, False]
    folder = batch_folder(todo, killed)
    assert (folder / "checkpoint.safetensors").exists() and (folder / READY).exists()
    run_units(todo, killed, Job(never, never, batch_key, 3), 1, "cpu")
    assert same_bits(todo, killed, whole) and all(facts(unit, killed)["units_per_batch"] == 3 for unit in todo)
    assert not folder.exists()


def test_a_corrupt_result_of_an_interrupted_batch_is_trained_again(tmp_path, tiny_pipeline):
    todo = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32))
    train_units(todo, tmp_path, "cpu")
    notes = [json.loads((unit.folder(tmp_path) / MANIFEST).read_text()) for unit in todo]
    for unit in todo:
        (unit.folder(tmp_path) / MANIFEST).unlink()
    ready = batch_folder(todo, tmp_path) / READY
    ready.parent.mkdir()
    ready.write_text(json.dumps(notes))
    (todo[1].folder(tmp_path) / "learned.safetensors").write_bytes(b"torn")
    finish_interrupted("train", tmp_path)
    assert [is_done(unit, tmp_path) for unit in todo] == [True, False, True] and not ready.parent.exists()


def test_a_corrupt_photo_fails_alone_by_its_name(tmp_path, tiny_pipeline, monkeypatch):
    names, real = [], train_module.progress
    monkeypatch.setattr(train_module, "progress", lambda name, total: names.append(name) or real(name, total))
    todo = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32), ("mug", "robot", "cat", "dog"))
    bad = Path(todo[1].spec.photos[1].path)
    bad.write_bytes(b"\x89PNG broken")
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path, training_job(todo, concepts_per_batch=4), 1, "cpu")
    assert list(caught.value.failures) == ["ours/robot"] and str(bad) in str(caught.value)
    assert "\n" not in caught.value.failures["ours/robot"] and "1 of 4 units failed" in str(caught.value)
    others = [todo[0], *todo[2:]]
    assert [facts(unit, tmp_path)["units_per_batch"] for unit in others] == [3, 3, 3]
    assert names == ["ours/mug, cat, dog"], "progress names them all"
    with pytest.raises(UnitFailures, match="ours/robot"):
        run_units(todo, tmp_path, training_job(todo, concepts_per_batch=4), 1, "cpu")
    Path(todo[2].spec.photos[0].path).write_bytes(b"also")
    for unit in others[:2]:
        (unit.folder(tmp_path) / MANIFEST).unlink()
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path, training_job(todo, concepts_per_batch=4), 1, "cpu")
    assert set(caught.value.failures) == {"ours/robot", "ours/cat"}
    assert facts(todo[0], tmp_path)["units_per_batch"] == 1, "the only one that is left learns alone"


def holds(monkeypatch, most: int) -> list[int]:
    """Too little memory for more than so many concepts; the sizes that were tried."""
    tried, real = [], residual_training.train

    def train(loss, concepts, *rest):
        tried.append(len(concepts))
        if len(concepts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(loss, concepts, *rest)

    monkeypatch.setattr(residual_training, "train", train)  # imported where it is called
    return tried


def test_too_little_memory_halves_the_batch_and_facts_say_so(tmp_path, tiny_pipeline, monkeypatch):
    names = ("mug", "robot", "cat", "dog", "bus")
    todo, tried = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32), names), holds(monkeypatch, 2)
    run_units(todo, tmp_path, training_job(todo, concepts_per_batch=5), 1, "cpu")
    assert tried == [5, 2, 3, 1, 2]
    assert [facts(unit, tmp_path)["units_per_batch"] for unit in todo] == [2, 2, 1, 2, 2]
    assert all(facts(unit, tmp_path)["halved_from"] == 5 for unit in todo)
    assert not list((tmp_path / "train").glob("together-*"))


def test_too_little_memory_for_one_concept_fails_each_unit(tmp_path, tiny_pipeline, monkeypatch):
    todo = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32))
    holds(monkeypatch, 0)
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path, training_job(todo, concepts_per_batch=3), 1, "cpu")
    assert set(caught.value.failures) == {unit.name for unit in todo}
    assert all(
        "out of memory" in reason and "runtime.cpu_offload" in reason for reason in caught.value.failures.values()
    )


def test_a_fault_before_the_first_step_stays_with_its_unit_and_one_after_it_is_all_of_theirs(
    tmp_path, tiny_pipeline, monkeypatch
):
    todo, real = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32)), ours.encode_concept

    def encode(diffusion, data, settings):
        if data.concept == "cat":
            raise ValueError("this one's prompt")
        return real(diffusion, data, settings)

    monkeypatch.setattr(ours, "encode_concept", encode)
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path / "a", training_job(todo, concepts_per_batch=3), 1, "cpu")
    assert list(caught.value.failures) == ["ours/cat"] and "ValueError: this one's prompt" in str(caught.value)
    assert (todo[2].folder(tmp_path / "a") / "traceback.txt").exists()
    monkeypatch.setattr(ours, "encode_concept", real)
    begun = []

    def disk_is_full(*args, **_note):
        begun.append(args[3])
        raise PersresError("cannot write; free some space")

    monkeypatch.setattr("persres.training.residual_training.save_training", disk_is_full)
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path / "b", training_job(todo, concepts_per_batch=3), 1, "cpu")
    assert set(caught.value.failures) == {unit.name for unit in todo} and len(begun) == 1, "not tried again in halves"


def test_free_memory_and_a_steps_memory_decide_the_number_of_concepts():
    assert concepts_within(free=10_000, model=3_000, step=1_000, workers=1) == 8, "a fifth stays free"
    assert concepts_within(free=10_000, model=3_000, step=1_000, workers=2) == 2, (
        "the other worker's model, then half each"
    )
    assert concepts_within(free=100, model=3_000, step=1_000, workers=4) == 1, "never none"
    assert concepts_within(free=10_000, model=0, step=0, workers=1) == 8_000, (
        "a step that took nothing divides by no zero"
    )


def test_memory_is_measured_by_one_step_and_bounded(tmp_path, tiny_pipeline, monkeypatch):
    todo = units(tmp_path, Base(model=str(tiny_pipeline), resolution=32), checkpoint_every=1)
    calls = []

    def fits(free, model, step, workers):
        calls.append((free, model, step, workers))
        return concepts_within(free, model, step, workers)

    monkeypatch.setattr(batched_training, "concepts_within", fits)
    monkeypatch.setattr(batched_training, "free_mib", lambda place: 1e6)
    assert concepts_that_fit(todo, "cpu", 1) == batched_training.MAX_CONCEPTS_ELSEWHERE
    monkeypatch.setattr(batched_training, "free_mib", lambda place: 1.0)
    assert concepts_that_fit(todo, "cpu", 1) == 1
    assert all(model > 0 and workers == 1 for _, model, _, workers in calls)
    for photo in todo[0].spec.photos:
        Path(photo.path).write_bytes(b"broken")
    assert concepts_that_fit(todo[:2], "cpu", 1) == 1, "another concept is measured"
    with pytest.raises(PersresError, match="no concept has readable photos"):
        concepts_that_fit(todo[:1], "cpu", 1)
    assert not (tmp_path / "train").exists(), "measuring leaves nothing"


def test_a_containers_limit_counts(tmp_path):
    for name, text in (
        ("memory.max", "3145728\n"),
        ("memory.current", "2097152\n"),
        ("memory.stat", "anon 1\ninactive_file 1048576\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory._below_limit(tmp_path) == 2.0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._below_limit(tmp_path) is None
    assert memory.free_mib(torch.device("cpu")) > 0 and memory.used_mib(torch.device("cpu")) > 0


def test_on_a_gpu_its_memory_counts(monkeypatch):
    """No GPU here: torch's answers are replaced."""
    answers = {
        "empty_cache": lambda: None,
        "mem_get_info": lambda place: (3 * 2**20, 9 * 2**20),
        "memory_allocated": lambda place: 2**20,
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, value)
    gpu = torch.device("cuda")
    assert (memory.free_mib(gpu), memory.used_mib(gpu)) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(3, 3, [3]), (10, 8, [5, 5]), (7, 3, [2, 2, 3]), (2, 9, [2]), (0, 4, [])]
)
def test_parts_are_few_and_alike(count, most, sizes):
    parts = split_evenly(list(range(count)), most)
    assert [len(part) for part in parts] == sizes and [n for part in parts for n in part] == list(range(count))


def test_batches_depend_on_all_units_and_not_on_those_that_are_left(tmp_path):
    todo, groups = units(tmp_path, MINI, tuple("abcdefg")), []

    def measure(group):
        groups.append(group)
        return 3

    def run(work, workers=1, size=never):
        return Run(Job(never, never, batch_key, size), work, "cpu", workers, 1)

    names = [[unit.spec.concept for unit in batch] for batch in plan_batches(todo, todo, run(tmp_path), measure)]
    assert names == [["a", "b"], ["c", "d"], ["e", "f", "g"]] and len(groups) == 1
    left = plan_batches(todo, todo[3:6], run(tmp_path), measure)
    assert [[unit.spec.concept for unit in batch] for batch in left] == [["d"], ["e", "f"]]
    assert len(groups) == 1 and list(json.loads((tmp_path / "train" / BATCH_SIZES).read_text()).values()) == [3]
    assert plan_batches(todo, [], run(tmp_path, 2), never) == [], "without units nothing is measured"
    by_worker = plan_batches(todo, todo, run(tmp_path, 4), measure)
    assert [len(batch) for batch in by_worker] == [1, 2, 2, 2], "every worker has a share"

    def fails(group):
        raise RuntimeError("no such device")

    assert [len(batch) for batch in plan_batches(todo, todo, run(tmp_path / "other"), fails)] == [1] * 7
    assert [len(batch) for batch in plan_batches(todo, todo, run(tmp_path, size=4), never)] == [3, 4]


def test_which_units_share_a_batch(tmp_path):
    first = units(tmp_path, MINI)
    more = units(tmp_path, MINI, variant="other") + units(tmp_path, MINI, steps=5)
    rival = method_named("dreambooth").settings()
    alone = [
        units(tmp_path, MINI, ("mug",), train_token=True)[0],
        units(tmp_path, MINI.model_copy(update={"dtype": "float16"}), ("mug",))[0],
        Unit("train", "db/mug", first[0].spec.model_copy(update={"settings": rival})),
    ]
    assert [batch_key(unit) for unit in alone] == [None] * 3 and not can_train_batched(rival, MINI)
    groups = group_units([*first, *alone, *more, alone[0]], batch_key)
    assert [len(group) for group in groups] == [3, 1, 1, 1, 3, 3, 1]


def test_the_setting_is_a_number_or_auto():
    assert Runtime().concepts_per_batch == "auto" and Runtime(concepts_per_batch=5).concepts_per_batch == 5
    for wrong in (0, "all", 2.0, True):
        with pytest.raises(ValidationError, match="concepts_per_batch"):
            Runtime(concepts_per_batch=wrong)


def test_a_unit_alone_goes_the_way_of_one(tmp_path):
    (unit,) = units(tmp_path, MINI, ("mug",))
    done = []
    work = Job(lambda unit, work, device: done.append(unit.name), never, batch_key, 3)
    assert run_batch(work, [unit], tmp_path, "cpu") == {} and done == ["ours/mug"]


def dies(units: list[Unit], work: Path, device: str) -> dict[str, Exception]:
    os._exit(9)


def test_a_worker_that_dies_is_named_by_all_of_its_batch(tmp_path):
    todo = units(tmp_path, MINI, tuple("abcd"))
    work = Job(partial(train_unit), dies, batch_key, 2)
    with pytest.raises(UnitFailures) as caught:
        run_units(todo, tmp_path, work, 2, "cpu")
    assert set(caught.value.failures) == {unit.name for unit in todo}
    assert all(
        "2 units in one batch" in reason and "runtime.concepts_per_batch" in reason
        for reason in caught.value.failures.values()
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stage_trains_in_batches(tiny_profile, tmp_path, workers, logged):
    profile = tiny_profile | {
        "train": tiny_profile["train"] | {"variants": {"ours": {}, "token": {"train_token": True, "concepts": 2},
                                                       "db": {"method": "dreambooth", "concepts": 1, "steps": 1, "num_class_images": 0}}},
        "sample": {"configs": {"base": {}}},
        "runtime": {"device": "cpu", "workers": workers},
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": profile}))
    context = load_context(tmp_path / "params.yaml", None, tmp_path / "data", tmp_path / "work")
    for stage in ("fetch", "macro_class", "train"):
        run_stage(stage, context)
    costs = (
        pd.read_csv(context.data / "costs" / "train.csv").groupby("variant")["units_per_batch"].apply(sorted).to_dict()
    )
    assert costs == {"ours": [3, 3, 3] if workers == 1 else [1, 2, 2], "token": [1, 1], "db": [1]}
    assert len(list((context.data / "learned").rglob("*.safetensors"))) == 6
    assert sorted(p.name for p in (context.work / "train").iterdir() if not (p / MANIFEST).exists()) == [BATCH_SIZES]
    assert "fit into a batch" in logged.text and all(
        f"ours/{name} done" in logged.text for name in profile["fetch"]["concepts"]
    )
