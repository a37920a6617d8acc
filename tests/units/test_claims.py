"""An output folder has the results of one set of inputs: other inputs are refused, at once, before anything is written."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.units.claims import RUN, Inputs, check_claim, claimed, recorded_inputs


def photos_in(folder: Path, *contents: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        (folder / f"{content}.png").write_text(content)
    return sorted(folder.iterdir())


def inputs_of(folder: Path, *contents: str, name: str = "dog", settings: str = "s") -> Inputs:
    return Inputs.of(name, photos_in(folder, *contents), settings)


def test_the_same_photos_continue_and_may_grow_move_and_get_other_settings(tmp_path):
    out = tmp_path / "out"
    for inputs in (
        inputs_of(tmp_path / "a", "1", "2"),
        inputs_of(tmp_path / "a", "1", "2", settings="other"),
        inputs_of(tmp_path / "a", "1", "2", "3"),
        inputs_of(tmp_path / "copy", "1", "2", "3"),
    ):
        with claimed(out, inputs):
            assert recorded_inputs(out) == inputs


@pytest.mark.parametrize("other", ["folder", "name", "content", "more photos elsewhere"])
def test_other_inputs_are_refused_and_nothing_changes(tmp_path, other):
    out = tmp_path / "out"
    with claimed(out, inputs_of(tmp_path / "a", "1", "2")):
        pass
    before = (out / RUN / "inputs.json").read_bytes()
    if other == "content":
        shutil.rmtree(tmp_path / "a")
    wrong = {
        "folder": lambda: inputs_of(tmp_path / "b", "3"),
        "name": lambda: inputs_of(tmp_path / "a", "1", name="cat"),
        "content": lambda: inputs_of(tmp_path / "a", "8", "9"),
        "more photos elsewhere": lambda: inputs_of(tmp_path / "b", "1", "2", "3"),
    }[other]()
    with pytest.raises(PersresError, match=rf"{out} has the results of dog.*--out"), claimed(out, wrong):
        raise AssertionError("no work begins")
    assert (out / RUN / "inputs.json").read_bytes() == before


def hold(out: Path, inputs: Inputs, there) -> None:
    with claimed(out, inputs):
        there.send("in")
        there.poll(60)


@pytest.fixture
def busy(tmp_path):
    """The inputs of a process that is at work in a folder, the pipe that lets it end, and the process."""
    here, there = multiprocessing.Pipe()
    inputs = inputs_of(tmp_path / "a", "1", "2")
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "out", inputs, there))
    process.start()
    assert here.poll(30)
    yield inputs, here, process
    if process.is_alive():
        here.send("end")
    process.join()


@pytest.mark.parametrize("other", ["photos", "settings", "link to the folder"])
def test_other_inputs_do_not_wait_for_a_running_process(tmp_path, busy, other):
    out = tmp_path / "out"
    if other == "link to the folder":
        (tmp_path / "link").symlink_to(out)
        out = tmp_path / "link"
    wrong = inputs_of(tmp_path / "a", "1", "2", settings="t") if other == "settings" else inputs_of(tmp_path / "b", "3")
    started = time.monotonic()
    with pytest.raises(PersresError, match="--out"), claimed(out, wrong):
        raise AssertionError("no work begins")
    assert time.monotonic() - started < 10


def test_the_same_run_waits(tmp_path, busy):
    inputs, here, _ = busy
    timer, started = threading.Timer(0.5, lambda: here.send("end")), time.monotonic()
    timer.start()
    with claimed(tmp_path / "out", inputs):
        assert time.monotonic() - started > 0.4


def test_after_kill_9_the_folder_still_belongs_to_its_photos_and_is_free(tmp_path, busy):
    inputs, _, process = busy
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    partial = tmp_path / "out" / f".dog.png.{'0' * 32}.partial"
    partial.write_text("half")
    with pytest.raises(PersresError, match="has the results of dog"):
        check_claim(tmp_path / "out", inputs_of(tmp_path / "b", "3"))
    with claimed(tmp_path / "out", inputs):
        assert not partial.exists()


START = """
import sys
from pathlib import Path
from persres.errors import PersresError
from persres.units.claims import Inputs, claimed
import time
root = Path(sys.argv[1])
inputs = Inputs.of("dog", sorted((root / sys.argv[2]).iterdir()), "s")
try:
    with claimed(root / "out", inputs):
        (root / "out" / "result").write_text(sys.argv[2])
        time.sleep(0.3)
        assert (root / "out" / "result").read_text() == sys.argv[2]
except PersresError as error:
    sys.exit(3)
"""


def test_of_concurrent_starts_with_different_photos_one_works(tmp_path):
    for folder in "abc":
        photos_in(tmp_path / folder, folder)
    runs = [subprocess.Popen([sys.executable, "-c", START, str(tmp_path), folder]) for folder in "abc"]
    assert sorted(run.wait(60) for run in runs) == [0, 3, 3]


def test_links_that_version_0_1_staged_are_a_record(tmp_path):
    staged = tmp_path / "out" / RUN / "photos" / "dog"
    staged.mkdir(parents=True)
    for photo in photos_in(tmp_path / "a", "1", "2"):
        (staged / photo.name).symlink_to(photo)
    check_claim(tmp_path / "out", inputs_of(tmp_path / "a", "1", "2", "3"))
    for wrong in (inputs_of(tmp_path / "b", "3"), inputs_of(tmp_path / "a", "1", name="cat")):
        with pytest.raises(PersresError, match="has the results of dog"):
            check_claim(tmp_path / "out", wrong)


@pytest.mark.parametrize(
    "text", ["", "{", '{"name": 5}', "[]", '{"name": "dog", "source": "a", "photos": "x", "settings": "s"}']
)
def test_a_broken_record_is_one_clear_error(tmp_path, text):
    (tmp_path / "out" / RUN).mkdir(parents=True)
    (tmp_path / "out" / RUN / "inputs.json").write_text(text)
    with pytest.raises(PersresError, match=r"inputs\.json is not valid .*--out"):
        check_claim(tmp_path / "out", inputs_of(tmp_path / "a", "1"))
