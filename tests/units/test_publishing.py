"""A published folder is one writer's, whole: with several writers, after kill -9 at any point, and after version 0.1's left-overs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.units import files
from persres.units.files import link_file, publishing
from persres.units.locks import stage_lock

FILES = [f"{i}.txt" for i in range(4)]

# In a fresh process: for k = 1, 2, …, a child that is killed at the k-th line that files.py runs; exits when a child ends by itself.
KILLS = """
import os, signal, sys
from pathlib import Path
from persres.units import exchange, files

target, slow = Path(sys.argv[1]), sys.argv[2] == "no_exchange"
if slow:
    files.exchange = lambda first, second: False

def publish(text):
    with files.publishing(target) as fresh:
        for i in range(4):
            (fresh / f"{i}.txt").write_text(text)

def child(number):
    lines = 0
    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in (files.__file__, exchange.__file__):
            return None
        lines += event == "line"
        if lines == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    publish(f"new{number}")
    os._exit(0)

publish("new0")
whole, number, status = 0, 0, 1
while status:
    number += 1
    if (pid := os.fork()) == 0:
        child(number)
    status = os.waitpid(pid, 0)[1]
    if not target.is_dir():  # only without an exchange, until the next writer
        assert slow, number
        with files.publishing(target) as fresh:
            assert target.is_dir(), number
            for i in range(4):
                (fresh / f"{i}.txt").write_text(f"new{number}")
    texts = {path.name: path.read_text() for path in target.iterdir()}
    assert sorted(texts) == [f"{i}.txt" for i in range(4)] and len(set(texts.values())) == 1, (number, texts)
publish("last")
left = [path.name for path in target.parent.iterdir()]
assert left == [target.name], left
print(number)
"""

WRITER = """
import sys
from pathlib import Path
from persres.units.files import publishing

for turn in range(15):
    with publishing(Path(sys.argv[1])) as fresh:
        for i in range(4):
            (fresh / f"{i}.txt").write_text(f"{sys.argv[2]}-{turn}")
"""


def publish(target: Path, text: str) -> None:
    with publishing(target) as fresh:
        for name in FILES:
            (fresh / name).write_text(text)


def content(target: Path) -> set[str]:
    """The texts in a published folder, which has all files."""
    assert sorted(path.name for path in target.iterdir()) == FILES
    return {path.read_text() for path in target.iterdir()}


@pytest.mark.parametrize("system", ["exchange", "no_exchange"])
def test_a_kill_at_any_line_loses_and_mixes_nothing(tmp_path, system):
    call = [sys.executable, "-c", KILLS, str(tmp_path / "data" / "out"), system]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40, "the lines of one publishing"


@pytest.mark.parametrize("system", ["exchange", "no_exchange"])
def test_concurrent_writers_do_not_mix(tmp_path, system):
    target, code = tmp_path / "data" / "out", WRITER
    if system == "no_exchange":
        code = "from persres.units import files\nfiles.exchange = lambda first, second: False\n" + WRITER
    writers = [subprocess.Popen([sys.executable, "-c", code, str(target), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(content(target)) == 1
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_reader_never_misses_the_folder(tmp_path):
    target, missed, end = tmp_path / "out", [], threading.Event()
    publish(target, "first")

    def read() -> None:
        while not end.is_set():
            if not (target / "0.txt").exists():
                missed.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        publish(target, str(turn))
    end.set()
    reader.join()
    assert not missed


def test_a_live_writer_s_folder_stays(tmp_path):
    target = tmp_path / "out"
    with publishing(target) as first:
        (first / "0.txt").write_text("first")
        publish(target, "second")
        for name in FILES:
            (first / name).write_text("first")
    assert content(target) == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".out.old", f".out.{'0' * 32}.old"])
def test_a_folder_that_a_killed_writer_moved_aside_comes_back(tmp_path, name):
    target = tmp_path / "out"
    publish(target, "finished")
    target.rename(tmp_path / name)
    (tmp_path / ".out.publishing").mkdir()
    with pytest.raises(ZeroDivisionError), publishing(target):
        _ = 1 / 0
    assert content(target) == {"finished"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_targets_left_overs_and_files_stay(tmp_path):
    names = (".out.x.publishing", ".outer.publishing", "out.old", ".out.publishing.txt", ".ou.old")
    for name in names:
        (tmp_path / name).mkdir()
    publish(tmp_path / "out", "1")
    assert {path.name for path in tmp_path.iterdir()} == {"out", *names}


@pytest.mark.parametrize("kind", ["link", "dead link"])
def test_a_link_is_replaced_and_not_written_through(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    publish(tmp_path / "out", "1")
    assert content(tmp_path / "out") == {"1"} and not (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("wrong", ["a file", "below a file", "nul\0", "x" * 300])
def test_a_wrong_target_is_one_clear_error_before_the_work(tmp_path, wrong):
    (tmp_path / "a file").write_text("precious")
    target = tmp_path / "a file" / "out" if wrong == "below a file" else tmp_path / wrong
    with pytest.raises(PersresError, match=r"cannot write to|is a file"), publishing(target):
        raise AssertionError("no work begins")
    assert (tmp_path / "a file").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_hard_links_stay_links_and_content_reaches_the_disk_before_the_rename(tmp_path, monkeypatch):
    events, fsync, exchange = [], os.fsync, files.exchange
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(files, "exchange", lambda *paths: (events.append("exchange"), exchange(*paths))[1])
    (tmp_path / "unit").write_text("1")
    for _ in range(2):
        with publishing(tmp_path / "out") as fresh:
            link_file(tmp_path / "unit", fresh / "ours" / "a.txt")
    assert (tmp_path / "out" / "ours" / "a.txt").samefile(tmp_path / "unit")
    swap = events.index("exchange")
    assert events[swap - 3 : swap] == ["sync"] * 3, "the file and both folders"


def test_a_left_over_without_locks_waits_for_its_age(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    (tmp_path / ".out.publishing").mkdir()
    publish(tmp_path / "out", "1")
    assert (tmp_path / ".out.publishing").exists()
    os.utime(tmp_path / ".out.publishing", (0, 0))
    publish(tmp_path / "out", "2")
    assert content(tmp_path / "out") == {"2"} and not (tmp_path / ".out.publishing").exists()


PARTIAL = """
import os, signal, sys
from pathlib import Path
from persres.units.files import written_whole
from persres.units.locks import stage_lock

with stage_lock(Path(sys.argv[1]), "train"), written_whole(Path(sys.argv[1]) / "train" / "a" / "b.bin") as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_s_partial_file_goes_with_the_next_run_of_the_stage(tmp_path):
    assert subprocess.run([sys.executable, "-c", PARTIAL, str(tmp_path)], check=False).returncode < 0
    folder = tmp_path / "train" / "a"
    assert len(list(folder.iterdir())) == 1
    (folder / ".mine.partial").write_text("no writer of ours")
    with stage_lock(tmp_path, "train"):
        assert [path.name for path in folder.iterdir()] == [".mine.partial"]


@pytest.mark.parametrize("work", ["nul\0", "file", "file/below"])
def test_a_wrong_work_folder_is_one_clear_error(tmp_path, work):
    (tmp_path / "file").write_text("")
    with pytest.raises(PersresError, match="cannot write to the work folder"), stage_lock(tmp_path / work, "train"):
        pass
