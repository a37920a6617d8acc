"""Every fuzz target for some seconds, and all inputs that once failed. ``make fuzz`` runs them for an hour."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.rule import check, saved
from tests.fuzz.targets import TARGETS

CASES = [(target, path) for target in TARGETS for path in saved(target)]


@pytest.fixture(autouse=True)
def no_log():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_input_is_read_or_refused(target):
    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def run(data: bytes) -> None:
        check(target, data)

    run()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("target", "path"), CASES, ids=[f"{target.name}-{path.name}" for target, path in CASES])
def test_an_input_that_once_failed(target, path):
    check(target, path.read_bytes())
