"""The six stages on tiny random models: what they leave, what they redo, and what a kill costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from persres.cli.main import main
from persres.images import unzip_images
from persres.prompts import PROMPT_GROUPS
from persres.stages.sample import sample_units
from persres.stages.train import train_units
from persres.units.context import Context
from persres.units.files import digest_files
from persres.units.unit import MANIFEST
from persres.workflow import STAGES, load_context, run_stage
from tests.support.processes import hears_ctrl_c, in_a_fork, seconds_to_stop


def context(params: Path, name: str = "a") -> Context:
    return load_context(params, None, params.parent / name / "data", params.parent / name / "work")


def run_all(params: Path, name: str = "a", stages=STAGES) -> Context:
    where = context(params, name)
    for stage in stages:
        run_stage(stage, where)
    return where


def change(params: Path, section: str, **values) -> None:
    settings = yaml.safe_load(params.read_text())
    settings["tiny"][section] |= values
    params.write_text(yaml.safe_dump(settings))


def manifests(work: Path, stage: str) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (work / stage).glob(f"*/{MANIFEST}")}


MAKES = {"train": "learned", "sample": "samples"}


@pytest.fixture(scope="module")
def ran(tiny_profile, tmp_path_factory) -> Path:
    """The first four stages, done once."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile}))
    run_all(folder / "params.yaml", stages=STAGES[:4])
    return folder / "a"


def copied(ran: Path, params: Path, before: str = "score", name: str = "a") -> Context:
    """What was run, as it was before a stage, in a folder of the test's own."""
    where = context(params, name)
    shutil.copytree(ran, where.data.parent)
    for stage in STAGES[STAGES.index(before) : 4]:
        shutil.rmtree(where.data / MAKES[stage])
        shutil.rmtree(where.work / stage)
    return where


def test_the_chain_leaves_what_it_promises(ran, tiny_params):
    copied(ran, tiny_params)
    where = run_all(tiny_params, stages=STAGES[3:])
    data = where.data
    assert {p.name for p in (data / "concepts").iterdir()} == {"heart_mug", "star_robot", "banded_cat"}
    classes = json.loads((data / "macro_class" / "macro_class.json").read_text())
    assert {c: e["selected"] for c, e in classes["concepts"].items()} == {
        "heart_mug": "mug",
        "star_robot": "robot",
        "banded_cat": "cat",
    }
    assert all(len(e["top"]) == 3 for e in classes["concepts"].values())
    assert {p.name for p in (data / "learned" / "ours").glob("*.safetensors")} == {
        "heart_mug.safetensors",
        "star_robot.safetensors",
        "banded_cat.safetensors",
    }
    log = [json.loads(line) for line in (data / "learned" / "ours" / "heart_mug.log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(6))
    archive = unzip_images(data / "samples" / "ours_lag" / "heart_mug.zip")
    assert len([n for n in archive if n.startswith("masks/")]) == 8
    assert len(archive) == 16
    rows = pd.read_parquet(data / "scores" / "scores.parquet")
    assert len(rows) == 3 * 3 * 8
    assert set(rows.columns) >= {
        "concept",
        "category",
        "prompt",
        "prompt_group",
        "config",
        "seed",
        "clip_text",
        "clip_image",
        "dino",
        "spec_hash",
    }
    assert rows[["clip_text", "clip_image", "dino"]].notna().all().all()
    assert set(rows["prompt_group"]) == set(PROMPT_GROUPS)
    table = pd.read_csv(data / "tables" / "table1.csv")
    assert list(table["config"]) == ["base", "ours", "ours_lag"]
    for score in ("clip_text", "clip_image", "dino"):
        assert table[[f"{score}_low", f"{score}_high"]].isna().all().all(), "three concepts are too few for an interval"
        means = rows.groupby(["config", "concept"])[score].mean().groupby("config").mean()
        assert table.set_index("config")[score].to_dict() == pytest.approx(means.to_dict())
    assert table["params"][1] < table["params"][0]
    sheet = Image.open(data / "sheets" / "heart_mug.png")
    assert sheet.width > 4 * 160 and sheet.height > 5 * 160
    again = manifests(where.work, "sample")
    run_all(tiny_params, stages=STAGES[3:])
    assert manifests(where.work, "sample") == again, "nothing is sampled twice"


def test_a_new_guidance_scale_trains_nothing_again(ran, tiny_params):
    where = copied(ran, tiny_params)
    trained, sampled = manifests(where.work, "train"), manifests(where.work, "sample")
    change(tiny_params, "sample", cfg_scale=3.0)
    after = run_all(tiny_params, stages=STAGES[2:4])
    assert manifests(after.work, "train") == trained
    assert len(manifests(after.work, "sample")) == 2 * len(sampled)


def test_runtime_is_no_part_of_a_result_but_the_photos_are(ran, tiny_params):
    where = copied(ran, tiny_params)
    before, sampled = {u.name: u.hash for u in train_units(where)}, [u.hash for u in sample_units(where)]
    change(tiny_params, "runtime", workers=2, sample_batch=1, cpu_offload=True)
    assert {u.name: u.hash for u in train_units(context(tiny_params))} == before
    assert [u.hash for u in sample_units(context(tiny_params))] == sampled
    photo = next((where.data / "concepts" / "heart_mug" / "images").iterdir())
    Image.new("RGB", (64, 64), "red").save(photo)
    after = {u.name: u.hash for u in train_units(context(tiny_params))}
    assert [n for n in before if before[n] != after[n]] == ["ours/heart_mug"]


def test_base_prompts_lack_v_star_and_noise_names_agree(ran, tiny_params):
    where = copied(ran, tiny_params)
    specs = {u.name: u.spec for u in sample_units(where)}
    base, ours = specs["base/heart_mug"].image_specs, specs["ours/heart_mug"].image_specs
    assert [i.plain for i in base] == [i.plain for i in ours] == [i.prompt for i in base]
    assert all("<v*> mug" in i.prompt and "<v*>" not in i.plain for i in ours)


@pytest.mark.parametrize("stage", ["train", "sample"])
def test_kill_9_then_run_again(ran, tiny_params, stage):
    """Finished units are not redone and the result equals an unbroken run's, to the byte."""
    change(tiny_params, stage, steps={"train": 30, "sample": 6}[stage])
    change(
        tiny_params, "runtime", concepts_per_batch=1
    )  # a batch that is killed: tests/methods/test_batched_training.py
    whole, killed = (copied(ran, tiny_params, stage, name) for name in ("whole", "killed"))
    run_stage(stage, whole)
    process = in_a_fork(run_stage, stage, killed)
    deadline = time.monotonic() + 120
    while not manifests(killed.work, stage) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    done = manifests(killed.work, stage)
    published = MAKES[stage]
    assert done and len(done) < (3 if stage == "train" else 9), "the kill must fall between units"
    assert not (killed.data / published).exists(), "nothing half-published"
    run_stage(stage, killed)
    assert all(manifests(killed.work, stage)[path] == stamp for path, stamp in done.items())
    if stage == "train":
        assert residual_tensors(whole.data / published) == residual_tensors(killed.data / published)
    else:
        assert archives(whole.data / published) == archives(killed.data / published)


def archives(folder: Path) -> dict[str, str]:
    """Digests of the image archives; the index next to them names paths, which differ by run here."""
    return digest_files(sorted(folder.rglob("*.zip")), folder)


def residual_tensors(folder: Path) -> dict[str, bytes]:
    from persres.units.checkpoints import read_tensors

    return {
        f"{p.name}/{k}": v.numpy().tobytes()
        for p in folder.rglob("*.safetensors")
        for k, v in read_tensors(p)[0].items()
    }


@pytest.mark.alone
def test_ctrl_c_stops_within_seconds(tiny_params):
    change(tiny_params, "train", steps=5000)
    change(tiny_params, "runtime", workers=2)
    where = run_all(tiny_params, stages=STAGES[:2])
    command = [
        sys.executable,
        "-m",
        "persres",
        "run",
        "train",
        "--params",
        str(tiny_params),
        "--data",
        str(where.data),
        "--work",
        str(where.work),
    ]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    began = time.monotonic()
    while not list((where.work / "train").glob("*/checkpoint.safetensors")) and time.monotonic() < began + 240:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    limit = seconds_to_stop(started - began)
    assert time.monotonic() - started < limit  # 0.6 s on an idle machine
    assert process.returncode == 130
    assert "stopped" in error and "Traceback" not in error
    assert not (where.data / "learned").exists()
    while time.monotonic() - started < limit and group_members(process.pid):
        time.sleep(0.05)
    assert not group_members(process.pid), "no worker stays behind"


def group_members(group: int) -> str:
    """Living processes of a group; a killed one may stay listed until the machine's init collects it."""
    listed = subprocess.run(["pgrep", "-a", "-g", str(group)], capture_output=True, text=True, check=False).stdout
    return "".join(line for line in listed.splitlines(keepends=True) if "<defunct>" not in line)


def test_one_broken_concept_fails_loudly_once_and_leaves_the_others(ran, tiny_params, capsys):
    where = copied(ran, tiny_params, "train")
    (where.data / "concepts" / "star_robot" / "images" / "001.png").write_bytes(b"\x89PNG broken")
    arguments = ["run", "train", "--params", str(tiny_params), "--data", str(where.data), "--work", str(where.work)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert (
        "1 of 3 units failed" in error
        and "ours/star_robot" in error
        and "001.png" in error
        and "Traceback" not in error
    )
    assert len(manifests(where.work, "train")) == 2
    assert not (where.data / "learned").exists()


def test_unknown_parameter_and_missing_stage_are_one_error(tiny_params, tmp_path, capsys):
    arguments = ["--params", str(tiny_params), "--data", str(tmp_path / "d"), "--work", str(tmp_path / "w")]
    assert main(["run", "train", *arguments]) == 1
    assert "run the fetch stage first" in capsys.readouterr().err
    change(tiny_params, "train", stepz=1)
    assert main(["run", "train", *arguments]) == 1
    assert "tiny.train.stepz: unknown setting" in capsys.readouterr().err
