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
