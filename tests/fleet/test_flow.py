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
    photo = data / "concepts" / "heart_mug" / "images" / "000.png"
    photo.write_bytes(b"photo")
    failed = run_flow(tiny_params, ["train"], train={"steps": 7})  # train alone: fetch would draw the photo again
    assert failed.is_failed()
    assert "1 of 2 units failed" in failed.message and "heart_mug" in failed.message and str(photo) in failed.message
    failed = run_flow(tiny_params, fetch={"concepts": ["heart_mug", "no_such_thing"]})
    assert failed.is_failed()
    assert "no_such_thing" in failed.message


def shard_of(numbers, attempt=0):
    from persres.fleet.serialization import unit_to_json
    from persres.fleet.shards import make_shard
    from persres.stages.noop import NoopSpec
    from persres.units.unit import Unit

    return make_shard([unit_to_json(Unit("noop", f"n/{i}", NoopSpec(number=i))) for i in numbers], attempt, "cpu", {})


@pytest.fixture(scope="module")
def deployed(prefect_server):
    """The shard flow's deployment, in a pool that no worker serves: the tests are its workers."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.shard import shard

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="persres-test", type="process"))
        flow_id = client.create_flow(shard)
        client.create_deployment(flow_id, "shard", work_pool_name="persres-test", entrypoint="flows/shard.py:shard")
        yield client


def test_the_same_shard_is_one_run_until_that_run_has_ended(deployed, tmp_path):
    from prefect.states import Completed, Crashed, Failed

    from persres.errors import PersresError
    from tasks.shards import Deployment, outcome_of

    send = Deployment("persres-shard/shard", str(tmp_path))
    first = send.submit(shard_of([1, 2]))
    assert send.submit(shard_of([2, 1])) == first, "two schedulers share it"
    assert send.submit(shard_of([1, 2], attempt=1)) != first
    deployed.set_flow_run_state(first, Completed(), force=True)
    second = send.submit(shard_of([1, 2]))
    assert second != first, "another day's"
    assert outcome_of(deployed.read_flow_run(first)).crash is None
    deployed.set_flow_run_state(second, Crashed(message="no heartbeat"), force=True)
    ended = outcome_of(deployed.read_flow_run(second))
    assert "Crashed: no heartbeat" in ended.crash and str(second) in ended.log
    deployed.set_flow_run_state(second, Failed(message="the store refused the report"), force=True)
    ended = outcome_of(deployed.read_flow_run(second))
    assert ended.crash is None and ended.message == "the store refused the report"
    with pytest.raises(PersresError, match="no deployment nowhere/shard; make fleet-setup"):
        Deployment("nowhere/shard", str(tmp_path)).submit(shard_of([1]))


def test_shards_are_sent_watched_and_judged(deployed, tmp_path, monkeypatch):
    """The scheduler through the server; this test is the worker, and dies once of a run that stays Pending."""
    from pathlib import Path

    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Failed, Pending

    from flows.shard import shard as shard_flow
    from persres.fleet.scheduler import Fleet
    from persres.stages.noop import NoopSpec, noop_unit
    from persres.units.batches import Job
    from persres.units.unit import Unit, is_done
    from tasks import shards
    from tasks.shards import Deployment

    monkeypatch.setattr(shards, "POLL", 0.1)
    monkeypatch.setattr(shards, "STUCK", -1.0)  # since when it is first seen
    store, seen = str(tmp_path / "store"), []

    def act(progress):
        for run in deployed.read_flow_runs(flow_run_filter=FlowRunFilter(name={"like_": "noop-"})):
            if run.parameters["store"] != store or run.id in seen:
                continue
            seen.append(run.id)
            if len(seen) == 1:
                deployed.set_flow_run_state(run.id, Pending(), force=True)
                continue
            state = shard_flow(store, run.parameters["shard"], str(tmp_path / "worker"), return_state=True)
            assert state.is_completed(), state.message
            deployed.set_flow_run_state(run.id, Failed(message="whatever it says, manifests are believed"), force=True)

    units = [Unit("noop", f"n/{i}", NoopSpec(number=i)) for i in range(6)]
    Fleet(store, Deployment("persres-shard/shard", store), shards=2, report=act)(
        units, tmp_path / "scheduler", Job(noop_unit), 0, "cpu"
    )
    assert all(is_done(unit, tmp_path / "scheduler") for unit in units)
    assert len(seen) == 4, "two shards; the stuck one's three units again, in two"
    lost = shard_flow(store, "nowhere", str(tmp_path / "worker"), return_state=True)
    assert lost.is_failed() and "holds no shard nowhere" in lost.message
    assert Path(store).is_dir()


class Clock:
    """This machine's clocks in place of the module ``time``: the wall's far ahead of the server's, the other as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return 4e9

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_only_a_run_that_stays_pending_on_the_schedulers_clock_is_given_up(deployed, tmp_path, monkeypatch):
    from prefect.states import Pending, Running

    from tasks import shards
    from tasks.shards import STUCK, Deployment, Watch

    monkeypatch.setattr(shards, "time", clock := Clock())
    run, watch = Deployment("persres-shard/shard", str(tmp_path)).submit(shard_of([7])), Watch()

    def seen(state=None):
        if state is not None:
            deployed.set_flow_run_state(run, state, force=True)
        watch.poll([run])
        return deployed.read_flow_run(run).state

    assert seen(Pending()).is_pending(), "however late it is on the wall"
    clock.now += STUCK - 1
    assert seen().is_pending() and seen(Running()).is_running()
    assert seen(Pending()).is_pending(), "again: it counts from here"
    clock.now += STUCK - 1
    watch._reset()  # the server was away
    clock.now += 2
    assert seen().is_pending()
    clock.now += STUCK + 1
    state = seen()
    assert state.is_crashed() and state.message == "its worker died before it began"


def test_runs_that_nobody_takes_are_logged_with_the_fix(deployed, tmp_path, monkeypatch, logged):
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.states import Running

    from tasks import shards
    from tasks.shards import WARN_AFTER, WARN_AGAIN, Deployment, Watch

    monkeypatch.setattr(shards, "time", clock := Clock())
    send, watch = Deployment("persres-shard/shard", str(tmp_path)), Watch()
    runs = [send.submit(shard_of([number])) for number in (8, 9)]

    def warnings_after(seconds):
        logged.clear()
        clock.now += seconds
        watch.poll(runs)
        return logged.text

    assert not warnings_after(0) and not warnings_after(WARN_AFTER - 1)
    warning = warnings_after(2)
    assert "2 runs wait" in warning and "no worker polls work pool persres-test" in warning
    assert "python -m flows.worker --pool persres-test starts one" in warning
    assert not warnings_after(WARN_AGAIN - 10), "not at each look"
    deployed.update_work_pool("persres-test", WorkPoolUpdate(is_paused=True))
    assert "prefect work-pool resume persres-test" in warnings_after(20)
    deployed.update_work_pool("persres-test", WorkPoolUpdate(is_paused=False))
    deployed.send_worker_heartbeat("persres-test", "busy", heartbeat_interval_seconds=30)
    assert not warnings_after(WARN_AGAIN), "a worker is there, busy"
    deployed.set_flow_run_state(runs[0], Running(), force=True)
    assert not warnings_after(WARN_AGAIN) and watch.waiting is None


def test_a_server_that_is_away_is_waited_for_by_whatever_asks_it(monkeypatch, logged):
    import httpx

    from persres.errors import PersresError
    from persres.fleet.scheduler import Progress
    from tasks import server, shards, views
    from tasks.shards import Deployment, Watch

    monkeypatch.setattr(server, "POLL", 0.001)
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    left = [3]

    class Run:
        id, state = "the run", None

    def unreachable(*args, **kwargs):
        left[0] -= 1
        if left[0] > 0:
            raise httpx.ConnectError("refused") if left[0] > 1 else RuntimeError("Failed to reach API at http://x")
        return Run()

    monkeypatch.setattr(shards, "run_deployment", unreachable)
    assert Deployment("persres-shard/shard", "store").submit(shard_of([1])) == "the run" and left == [0]
    assert logged.text.count("does not answer; waiting for it") == 2
    left[0] = 10**9
    with pytest.raises(PersresError, match=r"the Prefect server does not answer .*refused"):
        Deployment("persres-shard/shard", "store").submit(shard_of([1]))
    monkeypatch.setattr(shards, "get_client", unreachable)
    with pytest.raises(PersresError, match="does not answer"):
        Watch().poll(["the run"])
    request = httpx.Request("POST", "http://x")

    def refuses(*args, **kwargs):
        raise httpx.HTTPStatusError("401", request=request, response=httpx.Response(401, request=request))

    monkeypatch.setattr(shards, "run_deployment", refuses)
    with pytest.raises(PersresError, match=r"refused .401.; check PREFECT_API_URL"):
        Deployment("persres-shard/shard", "store").submit(shard_of([1]))
    for name in ("create_progress_artifact", "create_table_artifact"):
        monkeypatch.setattr(views, name, unreachable)
    seen = views.StageViews()
    seen(Progress("train", 1, 2, 60.0, 0)), seen.table()
    assert "not shown in Prefect's pages: refused" in logged.text and not seen.shown, "told again at the next look"


@pytest.fixture
def stages_run(monkeypatch):
    """The chain without its stages: which were run, and what some raise."""
    from persres import workflow

    run, fails = [], {}

    def run_stage(name, context):
        run.append(name)
        if fails.get(name):
            raise fails[name].pop()

    monkeypatch.setattr(workflow, "run_stage", run_stage)
    return run, fails


def run_fleet(params, **given):
    from flows.fleet import fleet

    folder = params.parent
    return fleet(str(params), None, str(folder / "data"), str(folder / "work"), return_state=True, **given)


def test_a_failed_unit_does_not_keep_the_others_from_their_tables(prefect_server, tiny_params, stages_run, monkeypatch):
    import flows.fleet
    from persres.errors import PersresError, UnitFailures
    from persres.workflow import STAGES, load_context, run_chain

    run, fails = stages_run
    settings = yaml.safe_load(tiny_params.read_text())
    settings["tiny"]["train"]["variants"] = {"ours": {}, "prior": {"num_class_images": 2}}
    settings["tiny"]["sample"]["configs"] = {"base": {}, "ours": {"variant": "ours"}, "prior": {"variant": "prior"}}
    tiny_params.write_text(yaml.safe_dump(settings))
    called = []
    monkeypatch.setattr(flows.fleet, "dvc", lambda folder, *arguments, **_shown: called.append(arguments))
    fails["train"] = [UnitFailures("train", {"prior/heart_mug": "000.png is no picture (log: http://x)"}, 4)]
    fails["score"] = [UnitFailures("score", {"ours/heart_mug": "out of memory"}, 4)]
    state = run_fleet(tiny_params, commit=True)
    assert run == ["fetch", "macro_class", "train", "train", "sample", "score", "score", "tables"]
    assert state.is_failed() and not called, "what is not whole is not committed"
    assert "prior/heart_mug: 000.png is no picture (log: http://x)" in state.message
    assert "ours/heart_mug: out of memory" in state.message and "the other rows are in" in state.message
    run.clear()
    flows.fleet.fleet.fn(str(tiny_params), commit=True)
    assert run == list(STAGES) and called == [("commit", "--force")]
    fails["train"] = [UnitFailures("train", {"prior/heart_mug": "one"}, 4)]
    fails["sample"] = [UnitFailures("sample", {"base/x": "a", "ours/x": "two"}, 4)]
    with pytest.raises(PersresError, match=r"(?s)prior/heart_mug: one.*ours/x: two"):
        run_chain(load_context(tiny_params), ["train", "sample"])


def test_a_push_without_a_remote_fails_before_the_work(prefect_server, tiny_params, stages_run, monkeypatch):
    import flows.fleet

    run, called = stages_run[0], []
    monkeypatch.setattr(flows.fleet, "configuration", lambda folder: {})
    state = run_fleet(tiny_params, commit=True, push=True)
    assert state.is_failed() and not run
    assert "push: there is no DVC remote; dvc remote add -d store" in state.message
    assert "or start the run with push: false" in state.message
    monkeypatch.setattr(flows.fleet, "configuration", lambda f: {"core.remote": "s", "remote.s.url": "s3://bucket/dvc"})
    monkeypatch.setattr(flows.fleet, "dvc", lambda folder, *arguments, **_shown: called.append(arguments))
    flows.fleet.fleet.fn(str(tiny_params), commit=True, push=True)
    assert called == [("commit", "--force"), ("push",)]


def test_a_sheet_is_linked_only_where_a_browser_can_open_it(tmp_path, monkeypatch, logged):
    from types import SimpleNamespace

    from persres.fleet.store import open_store
    from tasks import views

    made, context = [], SimpleNamespace(data=tmp_path / "data")
    (context.data / "sheets").mkdir(parents=True)
    (context.data / "sheets" / "heart_mug.png").write_bytes(b"a picture")
    monkeypatch.setattr(views, "create_image_artifact", lambda link, **labels: made.append((link, labels["key"])))
    store = open_store(str(tmp_path / "a store"))
    views.show_sheets(context, store)
    assert not made and f"sheet {tmp_path}/a store/sheets/heart_mug.png" in logged.text
    monkeypatch.setattr(type(store), "link", lambda self, key: f"https://s3/{key}?signed")
    views.show_sheets(context, store)
    assert made == [("https://s3/sheets/heart_mug.png?signed", "sheet-heart-mug")]


def test_progress_and_a_table_are_shown(prefect_server):
    from prefect import flow
    from prefect.artifacts import Artifact

    from persres.fleet.scheduler import Progress
    from tasks.views import StageViews, describe

    @flow
    def shown():
        views = StageViews()
        for done in (0, 5, 5, 10):
            views(Progress("class_images", done, 10, 60.0, 0))
        views.table()

    shown()
    bar, table, stage = (Artifact.get(key) for key in ("progress-class-images", "stages", "stage-class-images"))
    assert float(bar.data) == 100.0 and "10 of 10 units, 600 an hour" in bar.description
    for made in (table, stage):
        assert '"units": 10' in made.data and '"units/hour": 600' in made.data and '"minutes left": 0.0' in made.data
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

    deployments = yaml.safe_load((repo / "prefect.yaml").read_text())["deployments"]
    assert {entry["name"] for entry in deployments} == {"nightly", "personalize", "shard"}
    for entry in deployments:
        path, _, name = entry["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        assert set(entry.get("parameters", {})) <= set(inspect.signature(flow.fn).parameters)
        heartbeat = entry["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert heartbeat == "30" and entry["tags"] == ["persres"]
    nightly = next(entry for entry in deployments if entry["name"] == "nightly")
    assert nightly["parameters"]["commit"] is True and nightly["parameters"]["push"] is True
    from flows.fleet import SHARDS

    flows = {importlib.import_module(f"flows.{e['entrypoint'][6:].split('.')[0]}") for e in deployments}
    assert SHARDS == "persres-shard/shard" and len(flows) == 3
