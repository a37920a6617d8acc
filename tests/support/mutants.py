"""Mutation testing: change one thing in the numerics, run the tests that concern it, and count how many changes are caught.

``make mutants`` takes a random sample (``MUTANTS=150``, ``SEED=0``), goes on where a killed run stopped, and writes
``data/mutants/report.md``. Each mutant runs in a fork of a process that has torch and diffusers imported, so it costs the tests alone.
mutmut skips decorated functions, and cosmic-ray starts a new Python for every mutant, which here imports for ten seconds.

The tests of a module are those in the folder of its name and those that import it, the quick ones first. The golden run is the last
resort. Limits are on CPU time, so that a busy machine changes no verdict.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from tests.support.mutations import Mutation, mutated, mutations_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("sampling", "training", "residuals", "metrics", "units")
STATE, OUT = ROOT / ".work" / "mutants", ROOT / "data" / "mutants"
GOLDEN = "experiments/test_golden.py"
LEFT_OUT = (
    "experiments/",
    "fleet/",
    "workflow/",
    "versions/",
    "cli/",
    "docs/",
    "test_glossary",
    "test_wheel",
)  # slow, or of other parts
SLOWEST = 60.0  # CPU seconds of a file of tests; slower ones are left to the golden run
LONGEST = 3600.0  # seconds after which a run that sleeps is killed
PRELOADED = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip",
    "timm",
    "pandas",
    "scipy.stats",
    "pytest",
    "PIL.Image",
    "peft",
)


@dataclass(frozen=True)
class Verdict:
    """``caught`` by which test file; None: it survived."""

    key: str
    module: str
    line: int
    what: str
    code: str
    caught: str | None
    seconds: float


def main() -> None:
    """Sample, run what is not known yet, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--again", action="store_true", help="run survivors again, after tests have been added")
    parser.add_argument("--only", default="", help="only modules whose path holds this")
    given = parser.parse_args()
    sampled = sample(given.count, given.seed, given.only)
    known = {v.key: v for v in read_verdicts() if not (given.again and v.caught is None)}
    todo = [m for m in sampled if key_of(m) not in known]
    print(f"{len(sampled)} mutants, {len(sampled) - len(todo)} known", flush=True)
    preload()
    tests = Tests()
    for verdict in run_all(todo, tests, given.jobs):
        known[verdict.key] = verdict
        write_verdict(verdict)
        print(f"{verdict.caught or 'SURVIVED'}: {verdict.module}:{verdict.line} {verdict.what} ({verdict.seconds:.0f} s)", flush=True)  # fmt: skip
    write_report([known[key_of(m)] for m in sampled], given)


def modules() -> list[Path]:
    """The files that are mutated."""
    return [path for folder in FOLDERS for path in sorted((ROOT / "persres" / folder).rglob("*.py"))]


def sample(count: int, seed: int, only: str = "") -> list[Mutation]:
    """A random choice among all mutations."""
    every = [m for path in modules() if only in str(path) for m in mutations_of(path, path.read_text())]
    return random.Random(seed).sample(every, min(count, len(every)))


def key_of(mutation: Mutation) -> str:
    """Names a mutation by the text of its module, so that an edited module is tested anew."""
    text = f"{mutation.path.relative_to(ROOT)}\n{mutation.path.read_text()}\n{mutation.number}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_verdicts() -> list[Verdict]:
    """Of all runs; a later one of the same mutant counts."""
    file = STATE / "verdicts.jsonl"
    return [Verdict(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def write_verdict(verdict: Verdict) -> None:
    """Append it, so that a killed run goes on from here."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps(asdict(verdict)) + "\n")


def preload() -> None:
    """Import what every test imports, none of it ours."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    loaded = importlib.util.spec_from_file_location("compat", ROOT / "persres" / "models" / "compat.py")
    compat = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(compat)
    compat.declare_torchvision_ops()
    for name in PRELOADED:
        importlib.import_module(name)


class Tests:
    """Which files of tests concern a module, and the CPU time of each unmutated."""

    def __init__(self) -> None:
        paths = {str(path.relative_to(ROOT / "tests")): path for path in sorted((ROOT / "tests").rglob("test_*.py"))}
        self.imports = {name: set(_imported(path)) for name, path in paths.items() if not name.startswith(LEFT_OUT)}
        self.file = STATE / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def of(self, module: Path) -> list[str]:
        """Files below ``tests/``, the quick ones first; only those that pass unmutated."""
        parts = module.relative_to(ROOT).with_suffix("").parts
        dotted, folder = ".".join(parts).removesuffix(".__init__"), f"{parts[1]}/"
        files = [name for name, names in self.imports.items() if dotted in names or name.startswith(folder)]
        return sorted((name for name in files if self.takes(name) < SLOWEST), key=self.takes)

    def takes(self, name: str) -> float:
        """CPU seconds of a file, measured once; infinite where it fails."""
        known = f"{name} {hashlib.sha256((ROOT / 'tests' / name).read_bytes()).hexdigest()[:8]}"
        if known not in self.seconds:
            code, seconds = wait(start(None, name, 600 if name == GOLDEN else 2 * SLOWEST))
            self.seconds[known] = seconds if code == 0 else float("inf")
            STATE.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.seconds, indent=1))
            print(f"unmutated: {name} {self.seconds[known]:.1f} s", flush=True)
        return self.seconds[known]


def _imported(path: Path) -> Iterator[str]:
    """Our modules that a file of tests imports, and those that it may import as names of a package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_all(todo: list[Mutation], tests: Tests, jobs: int) -> Iterator[Verdict]:
    """A verdict on each, as they come; ``jobs`` at a time, each watched by a process of its own."""
    plan = [(mutation, tests.of(mutation.path)) for mutation in todo]
    golden = tests.takes(GOLDEN)
    if todo and golden == float("inf"):
        raise SystemExit(f"tests/{GOLDEN} fails without a mutation; make it pass first")
    running: dict[int, tuple[int, Mutation]] = {}
    while plan or running:
        while plan and len(running) < jobs:
            mutation, names = plan.pop(0)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.setsid()
                os.write(writer, json.dumps(asdict(examine(mutation, names, tests, golden))).encode())
                os._exit(0)
            os.close(writer)
            running[child] = (reader, mutation)
        child, _ = os.wait()
        reader, mutation = running.pop(child)
        answer = os.read(reader, 1 << 16)
        os.close(reader)
        yield Verdict(**json.loads(answer))


def examine(mutation: Mutation, names: list[str], tests: Tests, golden: float) -> Verdict:
    """Run file after file until one fails. A run that takes four times as long has failed too."""
    total, caught = 0.0, None
    for name in [*names, GOLDEN]:
        takes = golden if name == GOLDEN else tests.takes(name)
        code, seconds = wait(start(mutation, name, 30 + 4 * takes))
        total += seconds
        if code != 0:
            caught = name
            break
    module = str(mutation.path.relative_to(ROOT))
    line = mutation.path.read_text().splitlines()[mutation.line - 1].strip()
    return Verdict(key_of(mutation), module, mutation.line, mutation.what, line, caught, total)


def start(mutation: Mutation | None, name: str, seconds: float) -> int:
    """A fork that runs a file of tests on the mutated package in so much CPU time; its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if mutation is not None:
        sys.meta_path.insert(0, Mutant(mutation))
    os.chdir(ROOT)
    import pytest

    code = 1
    try:
        plain = ["-x", "-q", "-o", "timeout=0", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = int(pytest.main([f"tests/{name}", "-m", "not alone and not ceph", *plain]))
    finally:
        os._exit(code)


def wait(child: int) -> tuple[int, float]:
    """Its exit code and CPU seconds. What sleeps for too long is killed."""
    ended = time.monotonic() + LONGEST
    while time.monotonic() < ended:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


class Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutated module in place of the file's."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        parts = mutation.path.relative_to(ROOT).with_suffix("").parts
        self.package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.package else parts)

    def find_spec(self, name, path=None, target=None):
        """Of the mutated module alone."""
        if name != self.name:
            return None
        where = [str(self.mutation.path.parent)] if self.package else None
        return importlib.util.spec_from_file_location(name, self.mutation.path, loader=self, submodule_search_locations=where)  # fmt: skip

    def exec_module(self, module) -> None:
        """Run the mutated syntax tree."""
        exec(compile(mutated(self.mutation), str(self.mutation.path), "exec"), module.__dict__)


def write_report(verdicts: list[Verdict], given: argparse.Namespace) -> None:
    """``report.md``: the share caught by folder, and survivors with the reasons of ``reasons.json``."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "reasons.json"
    reasons = json.loads(file.read_text()) if file.exists() else {}
    alive = [v for v in verdicts if v.caught is None]
    caught = 1 - len(alive) / max(1, len(verdicts))
    explained = sum(_key(v) in reasons for v in alive)
    others = 1 - (len(alive) - explained) / max(1, len(verdicts) - explained)
    lines = ["# Mutation testing", "", f"{len(verdicts)} random mutants (seed {given.seed}) of `{'`, `'.join(FOLDERS)}`: {caught:.1%} caught. {explained} survivors change no result, for the reasons below; of the others {others:.1%} were caught. {_measured()}", ""]  # fmt: skip
    lines += ["| folder | mutants | caught | by a unit test | by the golden run |", "|---|---|---|---|---|"]
    for folder in FOLDERS:
        part = [v for v in verdicts if v.module.startswith(f"persres/{folder}/")]
        golden, caught = sum(v.caught == GOLDEN for v in part), sum(v.caught is not None for v in part)
        lines.append(f"| {folder} | {len(part)} | {caught} | {caught - golden} | {golden} |")
    lines += ["", "## Survivors", ""]
    for v in sorted(alive, key=lambda v: (v.module, v.line)):
        why = reasons.get(_key(v), "**no reason yet**")
        lines.append(f"- `{v.module}:{v.line}` {v.what}: `{v.code}`. {why}")
    (OUT / "report.md").write_text("\n".join(lines) + "\n")
    print(f"{OUT / 'report.md'}: {len(verdicts) - len(alive)} of {len(verdicts)} caught")


def _key(verdict: Verdict) -> str:
    """Of a reason in ``reasons.json``: line numbers change."""
    return f"{verdict.module} | {verdict.code} | {verdict.what}"


def _measured() -> str:
    """The commit whose code was mutated, and today's date."""
    folders = [f"persres/{folder}" for folder in FOLDERS]
    git = subprocess.run(["git", "log", "-1", "--format=%h", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    return f"Measured at commit {git.stdout.strip() or 'unknown'} on {date.today().isoformat()}."


if __name__ == "__main__":
    main()
