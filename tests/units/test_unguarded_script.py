"""A script without a main guard that works with several workers: refused once, in a fresh process with its time bounded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PARTS = {
    "units": "run_units(units, work, noop_unit, 2, 'cpu')",
    "a stage": "with stage_lock(work, 'noop'):\n        run_units(units, work, noop_unit, 2, 'cpu')",
    "a measured batch": "run_units(units, work, Job(noop_unit, run_many=print, batch_key=lambda unit: 'a', batch_size=print), 2, 'cpu')",
    "a check before the work": "check_script(2, 'persres.stages.noop')",
    "caught": "run_units(units, work, noop_unit, 2, 'cpu')",
}
SCRIPT = """
import sys
from pathlib import Path

from persres.stages.noop import NoopSpec, noop_unit
from persres.units.batches import Job
from persres.units.locks import stage_lock
from persres.units.pool import check_script, run_units
from persres.units.unit import Unit

work = Path(sys.argv[1])
print("begins", flush=True)
units = [Unit("noop", f"n/{{number}}", NoopSpec(number=number)) for number in range(4)]
{guard}
    {call}
"""


def run(tmp_path, call: str, guard: str = "if True:") -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    if call == "caught":
        call, guard = PARTS[call], "try:"
        text = (
            SCRIPT.format(call=call, guard=guard)
            + "except Exception as error:\n    print('caught', error, flush=True)\n    sys.exit(3)\n"
        )
    else:
        text = SCRIPT.format(call=PARTS[call], guard=guard)
    script.write_text(text)
    command = [sys.executable, str(script), str(tmp_path / "work")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)


@pytest.mark.parametrize("call", PARTS)
def test_an_unguarded_script_is_refused_once_naming_the_guard(tmp_path, call):
    done = run(tmp_path, call)
    output = done.stdout + done.stderr
    assert done.returncode == (3 if call == "caught" else 1), output
    assert output.count('put its calls below if __name__ == "__main__":') == 1 and str(tmp_path / "script.py") in output
    assert done.stderr.count("Traceback") == (0 if call == "caught" else 1), "the workers print none"
    assert not list(tmp_path.glob("work/noop/*")), "no unit, and no batch size that would stay"


def test_a_guarded_script_works(tmp_path):
    done = run(tmp_path, "units", 'if __name__ == "__main__":')
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("work/noop/*/manifest.json"))) == 4


def test_a_workers_import_in_another_pool_is_refused_with_the_sentence(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\nfrom pathlib import Path\nfrom persres.units.locks import stage_lock\n"
        "if __name__ != '__main__':\n    with stage_lock(Path('work'), 'a'):\n        pass\n"
        "else:\n    one = multiprocessing.get_context('spawn').Process(target=print)\n    one.start()\n    one.join()\n    print(one.exitcode)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.stdout == "1\n" and "put its calls below" in done.stderr and os.listdir(tmp_path) == ["script.py"]


@pytest.mark.parametrize(
    "text,unguarded",
    [
        ("print(is_unguarded())", True),
        ("if True:\n    print(is_unguarded())", True),
        ("def f():\n    print(is_unguarded())\nf()", True),
        ("if __name__ == '__main__':\n    print(is_unguarded())", False),
        ("def f():\n    print(is_unguarded())\nif '__main__' == __name__:\n    if True:\n        f()", False),
        ("import threading\nt = threading.Thread(target=lambda: print(is_unguarded()))\nt.start(); t.join()", False),
    ],
)
def test_whether_a_script_looks_guarded(tmp_path, text, unguarded):
    (tmp_path / "script.py").write_text(f"from persres.units.main_module import is_unguarded\n{text}\n")
    for options, piped in (
        (["script.py"], None),
        (["-m", "script"], None),
        (["-"], (tmp_path / "script.py").read_text()),
    ):
        command = [sys.executable, *options]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=tmp_path, input=piped, check=False
        )
        assert done.stdout == f"{unguarded and piped is None}\n", done.stderr
