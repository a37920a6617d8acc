"""A stage's own process imports diffusers without what no stage uses; anybody else's process has everything."""

from __future__ import annotations

import os
import runpy
import sys
import warnings

import pytest

from persres.cli import main
from persres.runs import lean

NAME = "wave"  # of the standard library, and imported by nothing here


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(lean, "UNUSED", (NAME, "json"))
    monkeypatch.delenv(lean.VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_within_it_a_library_is_not_there_and_afterwards_it_is(monkeypatch):
    monkeypatch.setenv(lean.VARIABLE, "1")
    with lean.lean_imports():
        with pytest.raises(ModuleNotFoundError):
            __import__(NAME)
        assert __import__("json").dumps(1) == "1", "what is imported already stays"
    assert __import__(NAME).Wave_read and sys.modules["json"] is not None


def test_an_error_within_leaves_nothing_hidden(monkeypatch):
    monkeypatch.setenv(lean.VARIABLE, "1")
    with pytest.raises(RuntimeError), lean.lean_imports():
        raise RuntimeError
    assert __import__(NAME)


def test_in_anybody_elses_process_it_does_nothing():
    with lean.lean_imports():
        assert __import__(NAME)


def test_only_a_process_for_one_stage_is_lean(monkeypatch):
    """``persres run`` as DVC starts it says so to the processes that it starts; the same call within another process does not."""
    monkeypatch.setattr(sys, "argv", ["persres", "run", "no_such_stage"])
    monkeypatch.setenv(lean.VARIABLE, "")
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, where the module is imported already
        runpy.run_module("persres.cli", run_name="__main__")
    assert os.environ[lean.VARIABLE] == "1"
    monkeypatch.setenv(lean.VARIABLE, "")
    assert main(["run", "no_such_stage"]) == 2 and not os.environ[lean.VARIABLE]
