"""The chain as one Prefect flow, on Prefect's own test server."""

from __future__ import annotations

import pytest
import yaml


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory):
    import os

    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def run_flow(params, stages=None, **changes):
    from flows.pipeline import pipeline

    settings = yaml.safe_load(params.read_text())
    for section, values in changes.items():
        settings["tiny"][section] |= values
    params.write_text(yaml.safe_dump(settings))
    folder = params.parent
    return pipeline(str(params), None, str(folder / "data"), str(folder / "work"), stages, return_state=True)


def test_the_flow_makes_the_table_and_a_failure_fails_it(prefect_server, tiny_params):
    state = run_flow(tiny_params, fetch={"concepts": ["heart_mug", "star_robot"]})
    assert state.is_completed()
    data = tiny_params.parent / "data"
    assert (data / "tables" / "table1.csv").exists() and len(list((data / "sheets").glob("*.png"))) == 2
    broken = data / "concepts" / "heart_mug" / "images" / "000.png"
    broken.write_bytes(b"broken")
    failed = run_flow(tiny_params, ["train"], train={"steps": 7})  # train alone: fetch would draw the photo again
    assert failed.is_failed()
    assert "1 of 2 units failed" in failed.message and "heart_mug" in failed.message and str(broken) in failed.message
    failed = run_flow(tiny_params, fetch={"concepts": ["heart_mug", "no_such_thing"]})
    assert failed.is_failed()
    assert "no_such_thing" in failed.message


def shard_of(numbers, attempt=0):
    from persres.fleet.kinds import as_raw
    from persres.fleet.noop import NoopSpec
    from persres.fleet.shards import make_shard
    from persres.runs.units import Unit

    return make_shard([as_raw(Unit("noop", f"n/{i}", NoopSpec(number=i))) for i in numbers], attempt, "cpu", {})


@pytest.fixture(scope="module")
def deployed(prefect_server):
    """The shard flow's deployment, in a pool that no worker serves: the tests are its agents."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.shard import shard

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="persres-test", type="process"))
        flow_id = client.create_flow(shard)
        client.create_deployment(flow_id, "shard", work_pool_name="persres-test", entrypoint="flows/shard.py:shard")
        yield client


def test_the_same_shard_is_one_run_until_that_run_has_ended(deployed, tmp_path):
    from prefect.states import Completed, Crashed

    from persres.errors import PersresError
    from tasks.shards import Deployment, how_it_ended

    send = Deployment("persres-shard/shard", str(tmp_path))
    first = send.submit(shard_of([1, 2]))
    assert send.submit(shard_of([2, 1])) == first, "two parents share it"
    assert send.submit(shard_of([1, 2], attempt=1)) != first
    deployed.set_flow_run_state(first, Completed(), force=True)
    second = send.submit(shard_of([1, 2]))
    assert second != first, "another day's"
    assert how_it_ended(deployed.read_flow_run(first)).died is None
    deployed.set_flow_run_state(second, Crashed(message="no heartbeat"), force=True)
    ended = how_it_ended(deployed.read_flow_run(second))
    assert "Crashed: no heartbeat" in ended.died and str(second) in ended.log
    with pytest.raises(PersresError, match="no deployment nowhere/shard; make fleet-setup"):
        Deployment("nowhere/shard", str(tmp_path)).submit(shard_of([1]))


def test_shards_are_sent_watched_and_judged(deployed, tmp_path, monkeypatch):
    """The parent through the server; this test is the agent, and dies once of a run that stays Pending."""
    from pathlib import Path

    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Failed, Pending

    from flows.shard import shard as shard_flow
    from persres.fleet.noop import NoopSpec, noop_unit
    from persres.fleet.parent import Fleet
    from persres.runs.units import Unit, is_done
    from tasks import shards
    from tasks.shards import Deployment

    monkeypatch.setattr(shards, "POLL", 0.1)
    monkeypatch.setattr(shards, "STUCK", 0.0)
    store, seen = str(tmp_path / "store"), []

    def act(progress):
        for run in deployed.read_flow_runs(flow_run_filter=FlowRunFilter(name={"like_": "noop-"})):
            if run.parameters["store"] != store or run.id in seen:
                continue
            seen.append(run.id)
            if len(seen) == 1:
                deployed.set_flow_run_state(run.id, Pending(), force=True)
                continue
            state = shard_flow(store, run.parameters["shard"], str(tmp_path / "agent"), return_state=True)
            assert state.is_completed(), state.message
            deployed.set_flow_run_state(run.id, Failed(message="whatever it says, manifests are believed"), force=True)

    units = [Unit("noop", f"n/{i}", NoopSpec(number=i)) for i in range(6)]
    Fleet(store, Deployment("persres-shard/shard", store), shards=2, report=act)(
        units, tmp_path / "parent", noop_unit, 0, "cpu"
    )
    assert all(is_done(unit, tmp_path / "parent") for unit in units)
    assert len(seen) == 4, "two shards; the stuck one's three units again, in two"
    lost = shard_flow(store, "nowhere", str(tmp_path / "agent"), return_state=True)
    assert lost.is_failed() and "holds no shard nowhere" in lost.message
    assert Path(store).is_dir()


def test_progress_and_a_table_are_shown(prefect_server):
    from prefect import flow
    from prefect.artifacts import Artifact

    from persres.fleet.parent import Progress
    from tasks.views import StageViews, describe

    @flow
    def shown():
        views = StageViews()
        for done in (0, 5, 5, 10):
            views(Progress("class_images", done, 10, 60.0, 0))
        views.table()

    shown()
    bar, table = Artifact.get("progress-class-images"), Artifact.get("stages")
    assert float(bar.data) == 100.0 and "10 of 10 units, 600 an hour" in bar.description
    assert '"units": 10' in table.data and '"units/hour": 600' in table.data
    assert describe(Progress("train", 5, 10, 1800.0, 0)).endswith("10 an hour, about 30 min left")


def test_the_automations_are_made_once(prefect_server):
    from flows.setup import connect, dead_runs, ensure_automation, ensure_pool

    with connect() as client:
        for _ in range(2):
            ensure_pool(client, "persres-gpu", "one worker per GPU")
            for automation in dead_runs():
                ensure_automation(client, automation)
        names = [automation.name for automation in client.read_automations()]
        assert sorted(names) == sorted({automation.name for automation in dead_runs()})
        folder = client.read_work_pool("persres-gpu").base_job_template["variables"]["properties"]["working_dir"]
        assert folder["default"] == ".", "a run starts in its worker's clone"


def test_every_deployment_names_a_flow_and_its_parameters(repo):
    """prefect.yaml, without a server."""
    import importlib
    import inspect

    found = yaml.safe_load((repo / "prefect.yaml").read_text())["deployments"]
    assert {entry["name"] for entry in found} == {"nightly", "personalize", "shard"}
    for entry in found:
        path, _, name = entry["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        assert set(entry.get("parameters", {})) <= set(inspect.signature(flow.fn).parameters)
        heartbeat = entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert heartbeat == "30" and entry["tags"] == ["persres"]
    from flows.fleet import SHARDS

    flows = {importlib.import_module(f"flows.{e['entrypoint'][6:].split('.')[0]}") for e in found}
    assert SHARDS == "persres-shard/shard" and len(flows) == 3
