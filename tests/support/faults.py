"""``make faults``: what strikes a fleet, what happened, and what was lost -> ``data/faults/faults.json`` and ``.md``.

Every fault strikes a campaign of units that do nothing for a second, on two workers, when some are finished and some are not. Then: seconds
until every unit is whole, finished units that were begun again, files that are missing, files that hold something else. The table is
written after each fault, so a run that is stopped leaves what it saw; ``python tests/support/faults.py worker`` strikes with one, and with
``--out FOLDER`` the table goes elsewhere. Each row says which commit it was seen at, and with which versions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from persres.fleet.content_store import blob_key, manifest_key
from persres.fleet.store import open_store
from persres.units.files import digest_file
from persres.units.unit import is_done
from tests.support.fleet_campaign import noops
from tests.support.fleet_stand import BUCKET, REPO, Stand

OUT = REPO / "data" / "faults"
UNITS, SECONDS = 12, 1.0


@dataclass
class Outcome:
    """One fault. ``seconds``: from the strike to whole. ``restarts``: how often the scheduler was started again by hand. ``runs``: the
    states of its shards' runs, by Prefect's word."""

    fault: str
    happened: str
    runs: dict[str, int]
    seconds: float
    restarts: int
    redone: int
    lost: int
    wrong: int


class Campaign:
    """One scheduler with a store and a work folder of its own."""

    def __init__(self, stand: Stand, name: str, units: int = UNITS, shards: int = 2, store: str | None = None) -> None:
        self.stand, self.name, self.shards = stand, name, shards
        self.store_url = f"s3://{BUCKET}/{store or name}"
        self.units = noops(units, SECONDS, self.store_url)
        self.work, self.process = stand.root / f"work-{name}", None
        self.before = len(stand.s3.forwarded)

    def start(self) -> None:
        """Or start again: the same command."""
        command = ["tests/support/fleet_campaign.py", self.store_url, str(self.work), "--units", str(len(self.units)),
                   "--seconds", str(SECONDS), "--shards", str(self.shards)]  # fmt: skip
        self.process = self.stand.spawn(f"scheduler-{self.name}", [sys.executable, *command], "scheduler")

    def finished(self) -> int:
        """Manifests in the store."""
        return len(list(open_store(self.store_url).keys("units/noop/")))

    def until(self, count: int) -> None:
        """Wait until so many are finished."""
        deadline = time.monotonic() + 240
        while self.finished() < count:
            assert time.monotonic() < deadline, self.stand.log(f"scheduler-{self.name}")[-2000:]
            time.sleep(0.2)

    def at_hand(self) -> list[int]:
        """Processes that are at a unit now, of which there is one soon: a worker is between two units for a moment only."""
        while not (processes := self.marked()):
            assert self.process.poll() is None, "too late: the campaign has ended"
        return processes

    def marked(self) -> list[int]:
        """Processes that the store has a mark of: they are at a unit, or were killed at one."""
        store = open_store(self.store_url)
        marks = [store.read(key) for key in store.keys("started/noop/")]
        return [json.loads(mark)["process"] for mark in marks if mark]

    def to_the_end(self, most: int = 4) -> int:
        """Wait, and start the scheduler again where it failed or was killed; how often."""
        for again in range(most):
            if self.process.wait(timeout=500) == 0:
                return again
            self.start()
        raise AssertionError(self.stand.log(f"scheduler-{self.name}")[-3000:])

    def counted(self) -> tuple[int, int, int]:
        """(finished units begun again, files lost, wrong files), by what the S3 server took and what lies in the work folder. A manifest
        that it refused finished nothing: whichever worker takes that unit next may begin it again."""
        done, redone = set(), 0
        for method, path in self.stand.s3.forwarded[self.before :]:
            if method != "PUT" or f"/{self.store_url.rpartition('/')[2]}/" not in path:
                continue
            if "/units/noop/" in path:
                done.add(path.rpartition("/")[2].removesuffix(".json"))
            elif "/started/noop/" in path:
                redone += path.split("/started/noop/")[1].split("/")[0] in done
        lost = sum(not is_done(unit, self.work) for unit in self.units)
        wrong = 0
        for unit in self.units:
            path = unit.folder(self.work) / "number.txt"
            wrong += path.exists() and path.read_text() != f"{unit.spec.number}\n"
        return redone, lost, wrong


# States that must be seen, or the strike missed or was not noticed.
EXPECTED = {
    "unit_process": {"Crashed": 1},
    "worker_sigterm": {"Failed": 1},
    "worker_and_run": {"Crashed": 1},
    "s3_refuses_one_put": {"Failed": 1},
    "disk_full": {"Failed": 1},
}
Strike = Callable[[Stand, Campaign], str]  # does it, and says what it did
FAULTS: dict[str, Strike] = {}


def fault(strike: Strike) -> Strike:
    """Enter it into the table under its name."""
    FAULTS[strike.__name__] = strike
    return strike


def struck(stand: Stand, name: str) -> Outcome:
    """Start, strike in the middle, wait until whole, count."""
    campaign = Campaign(stand, name)
    campaign.start()
    campaign.until(2)
    started = time.monotonic()
    happened = FAULTS[name](stand, campaign)
    restarts = campaign.to_the_end()
    seconds, runs = round(time.monotonic() - started, 1), stand.states(campaign.store_url)
    for state, least in EXPECTED.get(name, {}).items():
        assert runs.get(state, 0) >= least, f"{name}: {runs}"
    return Outcome(name, happened, runs, seconds, restarts, *campaign.counted())


@fault
def unit_process(stand: Stand, campaign: Campaign) -> str:
    """The process that is at a unit."""
    os.kill(campaign.at_hand()[0], signal.SIGKILL)
    return "its run became Crashed, its other units were sent again, the unit at hand alone"


@fault
def worker(stand: Stand, campaign: Campaign) -> str:
    """Prefect's worker alone; its worker ends after its run, with a code for which a supervisor starts it again five seconds later."""
    name, process = stand.worker_of(campaign.at_hand()[0])
    os.kill(process, signal.SIGKILL)
    assert stand.ended(name) == 128 + signal.SIGKILL
    time.sleep(5)
    stand.start_worker(name)
    return (
        "its run went on without it and versions_seen its own end; then the worker ended with 137 and was started again"
    )


@fault
def worker_sigterm(stand: Stand, campaign: Campaign) -> str:
    """The worker gets SIGTERM, as by systemctl; started again five seconds after its end."""
    process = campaign.at_hand()[0]
    name, _ = stand.worker_of(process)
    started = time.monotonic()
    stand.processes[name].terminate()
    assert stand.ended(name) == 0
    seconds = time.monotonic() - started
    assert process not in campaign.marked(), "a unit that is killed leaves its mark"
    time.sleep(5)
    stand.start_worker(name)
    return f"the unit at hand ended, no other was begun, the worker ended with 0 after {seconds:.1f} s; the rest was sent again"


@fault
def worker_and_run(stand: Stand, campaign: Campaign) -> str:
    """And the worker above them, as when a machine dies."""
    process = campaign.at_hand()[0]
    name, _ = stand.worker_of(process)
    stand.kill(name)  # its worker goes with it
    os.kill(process, signal.SIGKILL)
    time.sleep(5)
    stand.start_worker(name)
    return "no heartbeat came; the automation marked its run Crashed, its units were sent again"


@fault
def prefect_server(stand: Stand, campaign: Campaign) -> str:
    """Killed, started again ten seconds later on the same database."""
    stand.kill("server")
    time.sleep(10)
    stand.start_server()
    return "the scheduler waited for the server; what a run that could not reach it had not finished, if any, was sent again"


@fault
def scheduler(stand: Stand, campaign: Campaign) -> str:
    """The scheduler flow; started again at once."""
    stand.kill(f"scheduler-{campaign.name}")
    campaign.start()
    return "started again, it recognises its runs by their keys"


@fault
def s3_down(stand: Stand, campaign: Campaign) -> str:
    """No answer for thirty seconds."""
    stand.s3.refuse = lambda method, path: "drop"
    time.sleep(30)
    stand.s3.refuse = lambda method, path: None
    return "workers and the scheduler waited for it"


@fault
def s3_refuses_one_put(stand: Stand, campaign: Campaign) -> str:
    """Access denied, once, for a manifest."""
    refused: list[str] = []

    def once(method: str, path: str) -> str | None:
        if method == "PUT" and "/units/noop/" in path and not refused:
            refused.append(path)
            return "deny"
        return None

    stand.s3.refuse = once
    while not refused:
        time.sleep(0.1)
    stand.s3.refuse = lambda method, path: None
    return "its unit was reported unfinished and sent again"


@fault
def disk_full(stand: Stand, campaign: Campaign) -> str:
    """No byte is free in one worker's work folder for ten seconds (a file system of 4 KiB over it; needs root)."""
    folder = stand.root / stand.worker_of(campaign.at_hand()[0])[0] / ".work" / "worker"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], check=True)
    (folder / "full").write_bytes(b"x" * 4096)
    time.sleep(10)
    subprocess.run(["umount", "-l", str(folder)], check=True)
    return "its units were reported unfinished, naming the disk, and sent again"


@fault
def clock_jump(stand: Stand, campaign: Campaign) -> str:
    """Two days ahead, for workers and schedulers, and back ten seconds later."""
    stand.clock.write_text(f"{2 * 24 * 3600}\n")
    time.sleep(10)
    stand.clock.write_text("0\n")
    return "nothing: no decision rests on the clock"


def two_schedulers(stand: Stand) -> Outcome:
    """Begun at once, with the same units and store, each with a work folder of its own."""
    both = [
        Campaign(stand, name, units=2 * UNITS, store="two_schedulers")
        for name in ("two_schedulers", "two_schedulers-second")
    ]
    started = time.monotonic()
    for campaign in both:
        campaign.start()
    restarts = sum(campaign.to_the_end() for campaign in both)
    seconds, runs = round(time.monotonic() - started, 1), stand.states(both[0].store_url)
    (redone, *first), (_, *second) = (campaign.counted() for campaign in both)
    lost, wrong = (sum(pair) for pair in zip(first, second, strict=True))
    return Outcome(
        "two_schedulers", "they shared the runs, and both were whole", runs, seconds, restarts, redone, lost, wrong
    )


def damaged(stand: Stand, name: str, key_of: Callable) -> Outcome:
    """An object of a finished campaign is overwritten, then another scheduler asks for the same units."""
    first = Campaign(stand, name)
    first.start()
    assert first.to_the_end() == 0
    store = open_store(first.store_url)
    key = key_of(store, first.units[3])
    store.write(key, b'{"spec_hash": "0", "files": {}}' if key.endswith(".json") else b"999\n")
    second = Campaign(stand, f"{name}-after", store=name)
    started = time.monotonic()
    second.start()
    restarts = second.to_the_end()
    redone, lost, wrong = second.counted()
    output = next(line for line in stand.log(f"scheduler-{name}-after").splitlines() if "is damaged" in line)
    assert key.rpartition("/")[2].removesuffix(".json") in output, output
    happened = "named, taken away, its unit made again; the other eleven were taken as they were"
    seconds = round(time.monotonic() - started, 1)
    return Outcome(name, happened, stand.states(first.store_url), seconds, restarts, redone, lost, wrong)


def corrupt_manifest(stand: Stand) -> Outcome:
    """Another unit's, with no files."""
    return damaged(stand, "corrupt_manifest", lambda store, unit: manifest_key(unit))


def corrupt_object(stand: Stand) -> Outcome:
    """Other bytes under a digest's name."""

    def key(store, unit) -> str:
        (digest,) = json.loads(store.read(manifest_key(unit)))["files"].values()
        return blob_key(digest)

    return damaged(stand, "corrupt_object", key)


def _three_concepts(folder: Path) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["mini"]["fetch"] |= {"concepts": ["heart_mug", "rally_car", "star_robot"]}
    params["mini"]["train"] |= {"steps": 60, "checkpoint_every": 20}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def _trained(folder: Path) -> dict[str, float]:
    """Finished units of training by name, and when."""
    manifests = (folder / ".work" / "train").glob("*/manifest.json")
    return {json.loads(path.read_text())["name"]: path.stat().st_mtime for path in manifests}


def poisoned_photo(stand: Stand) -> Outcome:
    """A photo of one of three concepts is no picture; corrected once the run has reported it."""
    folder = stand.clone("poisoned")
    _three_concepts(folder)
    command = [sys.executable, "-m", "flows.fleet", "--store", f"s3://{BUCKET}/poisoned", "--shards", "2", "--stages"]
    stand.run([*command, "fetch", "macro_class"], "poisoned")
    photo = folder / "data" / "concepts" / "rally_car" / "images" / "001.png"
    whole = photo.read_bytes()
    photo.write_bytes(b"poison")
    started = time.monotonic()
    assert stand.spawn("poisoned", [*command, "train"], "poisoned").wait() == 1
    output, before = stand.log("poisoned"), _trained(folder)
    assert "1 of 3 units failed" in output and "rally_car" in output and "001.png" in output and len(before) == 2
    photo.write_bytes(whole)
    assert stand.spawn("poisoned", [*command, "train"], "poisoned").wait() == 0
    after = _trained(folder)
    redone = sum(after[name] != when for name, when in before.items())
    lost = 3 - len(list((folder / "data" / "learned").rglob("*.safetensors")))
    happened = "the two others were learned; the run failed once, naming concept and photo; after the correction only that one was trained"
    runs = stand.states(f"s3://{BUCKET}/poisoned")
    seconds, wrong = round(time.monotonic() - started, 1), _wrongly_learned(folder)
    return Outcome("poisoned_photo", happened, runs, seconds, 1, redone, lost, wrong)


def _wrongly_learned(folder: Path) -> int:
    """Published residuals that are not what their unit made, or were made of other photos than those that lie there now."""
    photos = folder / "data" / "concepts"
    manifests = [json.loads(path.read_text()) for path in (folder / ".work" / "train").glob("*/manifest.json")]
    wrong = 0
    for path in (folder / "data" / "learned").rglob("*.safetensors"):
        now = {digest_file(photo) for photo in (photos / path.stem / "images").iterdir()}
        made = [m for m in manifests if m["name"] == f"{path.parent.name}/{path.stem}"]
        right = [m for m in made if {photo["digest"] for photo in m["spec"]["photos"]} <= now]
        wrong += digest_file(path) not in {m["files"]["learned.safetensors"] for m in right}
    return wrong


def dvc_repro(stand: Stand) -> Outcome:
    """``dvc repro`` itself, in the middle of training; run again at once."""
    folder = stand.clone("dvc")
    _three_concepts(folder)
    command = [sys.executable, "-m", "dvc", "repro", "train"]
    process = stand.spawn("dvc", command, "dvc")
    while not _trained(folder):
        assert process.poll() is None, stand.log("dvc")
        time.sleep(0.2)
    started, before = time.monotonic(), _trained(folder)
    stand.kill("dvc", whole=False)
    assert stand.spawn("dvc", command, "dvc").wait() == 0, stand.log("dvc")[-2000:]
    after = _trained(folder)
    redone = sum(after[name] != when for name, when in before.items())
    stale = stand.run([sys.executable, "-m", "dvc", "status", "train"], "dvc")
    lost = 3 - len(list((folder / "data" / "learned").rglob("*.safetensors")))
    happened = "the stage that it had started ended; the second run waited for it and recorded it"
    return Outcome(
        "dvc_repro", happened, {}, round(time.monotonic() - started, 1), 1, redone, lost, int("up to date" not in stale)
    )


WHOLE: dict[str, Callable[[Stand], Outcome]] = {
    "two_schedulers": two_schedulers,
    "corrupt_manifest": corrupt_manifest,
    "corrupt_object": corrupt_object,
    "poisoned_photo": poisoned_photo,
    "dvc_repro": dvc_repro,
}


def scale(root: Path) -> list[dict[str, float]]:
    """Units that do nothing, over four workers: what the fleet itself costs a unit."""
    global SECONDS
    SECONDS, rows = 0.0, []
    with Stand(root / "scale", workers=4) as stand:
        for count in (200, 2000):
            campaign = Campaign(stand, f"scale{count}", units=count, shards=4)
            started = time.monotonic()
            campaign.start()
            assert campaign.to_the_end() == 0
            seconds = time.monotonic() - started
            redone, lost, wrong = campaign.counted()
            row = {
                "units": count,
                "workers": 4,
                "seconds": round(seconds, 1),
                "seconds_a_unit": round(seconds / count, 4),
            }
            rows.append(row | {"redone": redone, "lost": lost, "wrong": wrong})
            print(rows[-1], flush=True)
    return rows


def seen_with() -> dict[str, str]:
    """The commit, ``+`` where the files differ from it, and the versions of what the fleet stands on."""
    names = ("prefect", "boto3", "moto", "dvc", "torch")
    return {"commit": _commit(), "python": sys.version.split()[0]} | {name: version(name) for name in names}


def _commit() -> str:
    output = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=REPO, capture_output=True, text=True, check=False
    )
    return output.stdout.strip() or "unknown: no repository of git's"


def write(record: dict) -> None:
    """JSON for programs, Markdown for people."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "faults.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["# Faults", "", "| struck | what happened | its runs | s to whole | restarts by hand | finished units redone | files lost | wrong results |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in record["faults"]:
        runs = ", ".join(f"{count} {state}" for state, count in row["runs"].items()) or "–"
        figures = (row[key] for key in ("seconds", "restarts", "redone", "lost", "wrong"))
        cells = (row["fault"], row["happened"], runs, *figures)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    if record["not_run"]:
        lines += ["", *(f"Not run: {name}: {why}." for name, why in record["not_run"].items())]
    if record["scale"]:
        lines += [
            "",
            "# Scale",
            "",
            "| units | workers | s in all | s a unit | redone | lost | wrong |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            "| " + " | ".join(str(value) for name, value in row.items() if name != "with") + " |"
            for row in record["scale"]
        ]
        few, many = record["scale"][0], record["scale"][-1]
        further = (many["seconds"] - few["seconds"]) / (many["units"] - few["units"])
        lines += [
            "",
            f"The workers' start and Prefect's included. From {few['units']:,} to {many['units']:,}: {further:.3f} s a further unit (goal 0.25).",
        ]
    versions_seen = {json.dumps(row["with"]) for row in [*record["faults"], *record["scale"]] if "with" in row}
    lines += [
        "",
        *(f"Seen with {', '.join(f'{k} {v}' for k, v in json.loads(one).items())}." for one in sorted(versions_seen)),
    ]
    (OUT / "faults.md").write_text("\n".join(lines).rstrip() + "\n")


def jumping_clock(root: Path) -> str | None:
    """tests/support/clock.c, compiled; None where there is no compiler."""
    if shutil.which("cc") is None:
        return None
    library = root / "clock.so"
    source = Path(__file__).parent / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def main(arguments: list[str]) -> int:
    """0 where nothing was lost, redone or wrong."""
    global OUT
    if "--out" in arguments:
        place = arguments.index("--out")
        OUT, arguments = Path(arguments[place + 1]), [*arguments[:place], *arguments[place + 2 :]]
    root = Path(tempfile.mkdtemp(prefix="persres-faults-"))
    names, record = arguments or [*FAULTS, *WHOLE, "scale"], {"faults": [], "scale": [], "not_run": {}}
    old = json.loads((OUT / "faults.json").read_text()) if arguments and (OUT / "faults.json").exists() else record
    record = {"faults": [r for r in old["faults"] if r["fault"] not in names], "scale": old["scale"],
              "not_run": {k: v for k, v in old["not_run"].items() if k not in names}}  # fmt: skip
    clock = jumping_clock(root) if "clock_jump" in names else None
    if "clock_jump" in names and clock is None:
        record["not_run"]["clock_jump"] = "there is no C compiler for tests/support/clock.c (apt-get install gcc)"
        names.remove("clock_jump")
    if "disk_full" in names and os.geteuid():
        record["not_run"]["disk_full"] = "mounting a small file system needs root"
        names.remove("disk_full")
    if set(names) - {"scale"}:
        with Stand(root / "stand", preload=clock) as stand:
            for name in (name for name in names if name != "scale"):
                outcome = WHOLE[name](stand) if name in WHOLE else struck(stand, name)
                print(asdict(outcome), flush=True)
                record["faults"].append(asdict(outcome) | {"with": seen_with()})
                write(record)
    if "scale" in names:
        record["scale"] = [row | {"with": seen_with()} for row in scale(root)]
    write(record)
    shutil.rmtree(root, ignore_errors=True)
    return int(any(row["redone"] or row["lost"] or row["wrong"] for row in [*record["faults"], *record["scale"]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
