"""The accounts of a chain on manifests that are made up, and runs of commands that do nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.experiments.benchmarks import chain
from persres.experiments.benchmarks.chain import FinishedUnit, accounts, chain_overhead, finished_units, timed

# two workers: train 4 + 4 next to 6, sample 3 next to 1
RUN = [FinishedUnit("train", 4.0, 14.0), FinishedUnit("train", 6.0, 16.5), FinishedUnit("train", 4.0, 18.5), FinishedUnit("sample", 1.0, 22.0), FinishedUnit("sample", 3.0, 24.0)]  # fmt: skip


def write_manifest(work: Path, stage: str, name: str, facts: dict, ended: float) -> None:
    path = work / stage / name / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"stage": stage, "facts": facts}))
    os.utime(path, (ended, ended))


def test_every_second_is_accounted_for():
    account = accounts(RUN, 5.0, 26.0, 2)
    assert account["work_s"] == {"train": 7.0, "sample": 3.0}, "shared by two; and no shorter than the longest unit"
    assert account["rest_s"] == {
        "before train": 5.0,
        "within train": 1.5,
        "before sample": 2.5,
        "within sample": 0.0,
        "after": 2.0,
    }
    assert (
        account["bare_s"] + sum(account["rest_s"].values()) == pytest.approx(account["wall_s"]) == pytest.approx(21.0)
    )
    assert account["overhead"] == pytest.approx(1.1)


def test_a_batch_began_when_its_first_unit_did():
    batch = [FinishedUnit("train", 2.0, ended, 5) for ended in (13.0, 13.1, 13.2, 13.3, 13.4)]
    account = accounts(batch, 1.0, 14.0, 2)
    assert account["work_s"] == {"train": 10.0}, "one batch, so no second worker shares it"
    assert account["rest_s"]["before train"] == pytest.approx(2.0)


def test_more_workers_than_units_share_nothing():
    alone = [FinishedUnit("score", 2.0, 3.0)]
    assert accounts(alone, 0.0, 4.0, 16)["work_s"] == {"score": 2.0}
    with pytest.raises(PersresError, match="no unit was finished"):
        accounts([], 0.0, 4.0, 2)


def test_units_are_read_off_their_manifests(tmp_path):
    for number, done in enumerate(reversed(RUN)):
        write_manifest(tmp_path, done.stage, str(number), {"seconds": done.seconds}, done.ended)
    write_manifest(tmp_path, "nouns", "n", {}, 7.0)  # says nothing of its time: it counts as rest
    assert finished_units(tmp_path) == RUN


def test_a_failed_run_raises_its_output(tmp_path):
    started, ended = timed([sys.executable, "-c", "import time; time.sleep(0.2)"], tmp_path, {})
    assert ended - started >= 0.2
    with pytest.raises(PersresError, match="no such weights"):
        timed([sys.executable, "-c", "raise SystemExit('no such weights')"], tmp_path, {})


def test_runners_are_measured_in_turn(tiny_params, tmp_path, monkeypatch):
    """A run that leaves manifests, in the place of a real one."""

    def made_up(params, profile, folder):
        for number, done in enumerate(RUN):
            write_manifest(folder / "work", done.stage, str(number), {"seconds": done.seconds}, done.ended)
        return 5.0, 26.0

    monkeypatch.setattr(chain, "RUN", {"chain": made_up, "prefect": made_up})
    monkeypatch.setattr(chain, "find_spec", lambda name: None)
    account = chain_overhead(tiny_params, "tiny", tmp_path / "w", ("chain", "prefect"))
    assert account["workers"] == 1 and account["prefect"] is None
    assert account["chain"] == accounts(RUN, 5.0, 26.0, 1)
    with pytest.raises(PersresError, match="is not empty"):
        chain_overhead(tiny_params, "tiny", tmp_path / "w", ("chain",))
    monkeypatch.setattr(chain, "ROOT", tmp_path)
    with pytest.raises(PersresError, match="in a checkout"):
        chain_overhead(tiny_params, "tiny", tmp_path / "other", ("chain",))
