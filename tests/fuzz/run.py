"""``make fuzz``: every target in a process of its own for its share of the time; failing inputs go to the corpus, counts to data/fuzz.

A process that is silent for a minute is a hang: it is killed, and its last input is saved.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.rule import check, quiet, save
from tests.fuzz.targets import TARGETS

HANG = 60.0  # seconds
MEMORY = 8 << 30
REPORT = Path("data/fuzz/report.json")


def fuzz(name: str, seconds: float, last: Path, first_seed: int) -> dict[str, int]:
    """Run one target in this process for some seconds. The input at hand is in the file ``last``."""
    quiet()
    target = next(target for target in TARGETS if target.name == name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts = {"inputs": 0, "accepted": 0, "failures": 0}
    end, number = time.monotonic() + seconds, first_seed

    @settings(
        max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    @given(target.inputs)
    def one(data: bytes) -> None:
        if time.monotonic() > end:
            return
        last.write_bytes(data)
        faulthandler.dump_traceback_later(HANG, exit=True)
        counts["inputs"] += 1
        try:
            counts["accepted"] += check(target, data)
        except BaseException as error:
            faulthandler.cancel_dump_traceback_later()
            counts["failures"] += 1
            print(
                f"{name}: {type(error).__name__}: {str(error)[:300]} ({save(target, data)})",
                file=sys.stderr,
                flush=True,
            )
            if isinstance(error, KeyboardInterrupt):
                raise
        faulthandler.cancel_dump_traceback_later()

    while time.monotonic() < end:
        seed(number)(one)()
        number += 1
    return counts


def run_all(names: list[str], minutes: float, first_seed: int) -> dict[str, dict[str, int]]:
    """Run the targets one after the other, each in its own process."""
    share, results = 60 * minutes / len(names), {}
    for name in names:
        with tempfile.NamedTemporaryFile() as last, tempfile.NamedTemporaryFile() as out:
            command = [sys.executable, "-m", "tests.fuzz.run", "--target", name, "--seconds", str(share)]
            command += ["--last", last.name, "--out", out.name, "--seed", str(first_seed)]
            code = subprocess.run(command, check=False).returncode
            counts = json.loads(Path(out.name).read_text() or "{}")
            if code and not counts:  # killed: a hang, or no memory
                target = next(target for target in TARGETS if target.name == name)
                path = save(target, Path(last.name).read_bytes())
                print(f"{name}: its process ended with {code}; the last input is {path}", file=sys.stderr, flush=True)
                counts = {"inputs": 0, "accepted": 0, "failures": 1}
        results[name] = counts
        print(f"{name}: {counts}", flush=True)
    return results


def main() -> int:
    """Return 0 if no input broke the rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--last", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out:
        counts = fuzz(arguments.target[0], arguments.seconds, arguments.last, arguments.seed)
        arguments.out.write_text(json.dumps(counts))
        return 0
    names = arguments.target or [target.name for target in TARGETS]
    results = run_all(names, arguments.minutes, arguments.seed)
    if not arguments.target:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        report = {"minutes": arguments.minutes, "seed": arguments.seed, "targets": results}
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(counts["failures"] for counts in results.values()))


if __name__ == "__main__":
    sys.exit(main())
