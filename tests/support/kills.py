"""``make kill``: random kill -9 of whole commands, each run again until it ends -> ``data/faults/kills.json`` and ``.md``.

A round starts in a fresh folder. The command runs in a process group of its own and is killed at a random time, again and again, until one
run ends by itself. Then its results must be the bytes of a run that nobody killed; no unit that was finished before a kill may run again; no
temporary file may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from persres.miniworld.concepts import CONCEPTS, views
from persres.report.table_text import markdown
from persres.units.files import digest_file
from persres.units.provenance import versions
from persres.versions.git_dvc import dvc, git

REPO = Path(__file__).parents[2]
OUT = REPO / "data" / "faults"
TEMPORARY = (
    ".partial",
    ".publishing",
    ".old",
    ".fresh",
    ".gone",
    ".pull-",
)  # parts of the names of files that only a run may have
COLUMNS = {
    "command": "command",
    "rounds": "rounds",
    "kills": "kill -9",
    "changed": "results with other bytes",
    "lost": "finished units run again",
    "leftovers": "files left",
    "errors": "errors",
    "commit": "commit",
}
MOST_RUNS = 12  # of a round: then the last one may end
BIN = Path(sys.executable).parent


@dataclass
class Outcome:
    """What the rounds of one command gave. ``changed``: results with other bytes. ``lost``: finished units that ran again."""

    command: str
    rounds: int = 0
    kills: int = 0
    changed: int = 0
    lost: int = 0
    leftovers: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.changed or self.lost or self.leftovers or self.errors)


class Command(ABC):
    """A command, how to prepare a folder for it, and its results there."""

    name: str

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Fill a fresh folder."""

    @abstractmethod
    def arguments(self, folder: Path) -> list[str]:
        """The command line; it runs in the folder ``work`` below."""

    @abstractmethod
    def results(self, folder: Path) -> list[Path]:
        """Its result files."""

    def prepare_again(self, folder: Path) -> None:  # noqa: B027
        """What a user would do before another try; nothing by default."""

    def digests(self, folder: Path) -> dict[str, str]:
        """SHA-256 by relative path."""
        return {str(path.relative_to(folder)): digest_file(path) for path in sorted(self.results(folder))}


class Personalize(Command):
    """``persres personalize --profile mini`` with two workers, five photos."""

    name = "personalize"

    def prepare(self, folder: Path) -> None:
        photos = folder / "work" / "photos"
        photos.mkdir(parents=True)
        for number, view in enumerate(views(CONCEPTS[0], "reference", 5, 0)):
            view.image.save(photos / f"{number}.png")
        settings = yaml.safe_load((REPO / "params.yaml").read_text())
        mini = settings["mini"]
        mini["runtime"] |= {"workers": 2}
        mini["train"] |= {"steps": 60}
        (folder / "work" / "params.yaml").write_text(yaml.safe_dump({"profile": "mini", "mini": mini}))

    def arguments(self, folder: Path) -> list[str]:
        return [str(BIN / "persres"), "personalize", "photos", "--class", "mug", "--profile", "mini", "--out", "out"]

    def results(self, folder: Path) -> list[Path]:
        out = folder / "work" / "out"
        data = out / ".run" / "data"  # costs are seconds of this run, no result
        paths = (*out.glob("*"), *(path for path in data.rglob("*") if data / "costs" not in path.parents))
        return [path for path in paths if path.is_file()]


class Repro(Command):
    """``dvc repro`` of two concepts in a clone of this checkout."""

    name = "dvc repro"

    def prepare(self, folder: Path) -> None:
        subprocess.run(["git", "clone", "-q", str(REPO), str(folder / "work")], check=True)
        path = folder / "work" / "params.yaml"
        settings = yaml.safe_load(path.read_text())
        mini = settings["mini"]
        mini["fetch"]["concepts"] = [concept.name for concept in CONCEPTS[:2]]
        mini["train"] |= {"steps": 30}
        mini["sample"] |= {"prompts": 2, "steps": 5}
        mini["sample"]["configs"] = {name: mini["sample"]["configs"][name] for name in ("base", "ours")}
        mini["tables"]["rows"] = {"table1": {"ours": "Ours", "base": "Base"}}
        mini["runtime"] |= {"workers": 2}
        path.write_text(yaml.safe_dump({"profile": "mini", "mini": mini}))

    def arguments(self, folder: Path) -> list[str]:
        return [sys.executable, "-m", "dvc", "repro", "-q"]

    def prepare_again(self, folder: Path) -> None:
        for lock in ("lock", "rwlock", "rwlock.lock"):  # as docs/versions.md says for a killed DVC
            (folder / "work" / ".dvc" / "tmp" / lock).unlink(missing_ok=True)

    def results(self, folder: Path) -> list[Path]:
        data = folder / "work" / "data"
        return [
            path for name in ("learned", "samples", "scores") for path in (data / name).rglob("*") if path.is_file()
        ]


class Publish(Command):
    """``persres publish v1`` into a DVC remote that is a folder, and a bare git repository."""

    name = "publish"

    def prepare(self, folder: Path) -> None:
        work = folder / "work"
        (work / "source").mkdir(parents=True)
        for name in ("dog7", "mug"):
            (work / "source" / f"{name}.safetensors").write_bytes(name.encode() * 300_000)
        (work / "dvc.yaml").write_text(
            "stages:\n  train:\n    cmd: mkdir -p data/learned/ours && cp source/* data/learned/ours/\n"
            "    deps: [source]\n    outs: [data/learned]\nartifacts:\n  residuals: {path: data/learned, type: model}\n"
        )
        (work / "params.yaml").write_text("profile: tiny\ntiny: {}\n")
        git(work, "init", "-q", "-b", "main")
        git(folder, "init", "-q", "--bare", "-b", "main", "origin.git")
        git(work, "remote", "add", "origin", str(folder / "origin.git"))
        dvc(work, "init", "-q")
        dvc(work, "repro", "-q")
        dvc(work, "remote", "add", "-q", "-d", "store", str(folder / "store"))
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", "settings")
        git(work, "push", "-q", "origin", "main")

    def arguments(self, folder: Path) -> list[str]:
        return [str(BIN / "persres"), "publish", "v1"]

    def prepare_again(self, folder: Path) -> None:
        for path in (folder / "work" / ".git").rglob("*.lock"):  # git names the file and this fix itself
            path.unlink()

    def digests(self, folder: Path) -> dict[str, str]:
        """The objects of the remote, and the files of version v1 as a new clone pulls them."""
        out = folder / "pulled"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for concept in ("dog7", "mug"):
            command = [
                str(BIN / "persres"),
                "pull",
                concept,
                "--repo",
                str(folder / "origin.git"),
                "--rev",
                "v1",
                "--remote",
                "store",
            ]
            environment = os.environ | {"PERSRES_CACHE": str(folder / "cache")}
            subprocess.run([*command, "--out", str(out)], env=environment, check=True, capture_output=True)
        return super().digests(folder)

    def results(self, folder: Path) -> list[Path]:
        return [path for name in ("store", "pulled") for path in (folder / name).rglob("*") if path.is_file()]


class Pull(Publish):
    """``persres pull dog7`` of a published version."""

    name = "pull"

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        subprocess.run(super().arguments(folder), cwd=folder / "work", check=True, capture_output=True)

    def arguments(self, folder: Path) -> list[str]:
        return [
            str(BIN / "persres"),
            "pull",
            "dog7",
            "--repo",
            str(folder / "origin.git"),
            "--remote",
            "store",
            "--out",
            "pulled",
        ]

    def prepare_again(self, folder: Path) -> None:
        pass

    def digests(self, folder: Path) -> dict[str, str]:
        return Command.digests(self, folder)

    def results(self, folder: Path) -> list[Path]:
        places = (folder / "work" / "pulled", folder / "cache")
        return [path for place in places for path in place.rglob("*") if path.is_file()]


COMMANDS: dict[str, type[Command]] = {command.name: command for command in (Personalize, Repro, Publish, Pull)}


def run(command: Command, folder: Path, limit: float | None) -> tuple[int | None, float, str]:
    """Run once; exit code (None where it was killed after ``limit`` seconds), seconds, standard error."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command.arguments(folder), cwd=folder / "work", stdout=subprocess.DEVNULL, stderr=err, start_new_session=True,
            env=os.environ | {"PERSRES_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        err.seek(0)
        return code, time.monotonic() - begun, err.read()


def finished_units(folder: Path) -> dict[str, float]:
    """The manifests of finished units with the time at which each was written."""
    return {str(path): path.stat().st_mtime for path in folder.rglob("manifest.json")}


def temporary_files(folder: Path) -> list[Path]:
    """Files and folders that only a run may have."""
    places = [path for path in folder.rglob("*") if any(part in path.name for part in TEMPORARY)]
    return [path for path in places if ".git" not in path.parts]


def one_round(command: Command, folder: Path, seconds: float, rng: random.Random, outcome: Outcome) -> None:
    """Prepare the folder, then kill the command until a run ends by itself."""
    command.prepare(folder)
    units: dict[str, float] = {}
    for attempt in range(MOST_RUNS + 1):
        limit = None if attempt == MOST_RUNS else rng.uniform(0.2, 1.1) * seconds
        code, _, err = run(command, folder, limit)
        now = finished_units(folder)
        outcome.lost += sum(now.get(path) != written for path, written in units.items())
        units = now
        if code is None:
            outcome.kills += 1
            command.prepare_again(folder)
        elif code:
            outcome.errors.append(err[-300:])
            return
        else:
            return


def campaign(name: str, kills: int, seed: int) -> Outcome:
    """Rounds until so many kills."""
    rng, outcome = random.Random(f"{name} {seed}"), Outcome(name)
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        folder = Path(temporary) / "place"  # always the same: headers name the photos' paths
        command = COMMANDS[name]()
        command.prepare(folder)
        code, seconds, err = run(command, folder, None)
        assert code == 0, err[-2000:]
        expected = command.digests(folder)
        shutil.rmtree(folder)
        while outcome.kills < kills and not outcome.errors:
            one_round(command, folder, seconds, rng, outcome)
            outcome.rounds += 1
            leftovers = temporary_files(folder)
            outcome.leftovers += len(leftovers)
            digests = {} if outcome.errors else command.digests(folder)
            changed = [key for key in expected.keys() | digests.keys() if digests.get(key) != expected.get(key)]
            outcome.changed += 0 if outcome.errors else len(changed)
            print(asdict(outcome), [path.name for path in leftovers], changed[:5], flush=True)
            shutil.rmtree(folder)
    return outcome


def write(outcome: Outcome, seed: int) -> None:
    """The record and its table, with this command's row in place of an earlier one."""
    OUT.mkdir(parents=True, exist_ok=True)
    path, row = OUT / "kills.json", {"commit": versions().get("commit", "unknown"), "seed": seed} | asdict(outcome)
    rows = json.loads(path.read_text()) if path.exists() else []
    entries = {row["command"]: row for row in rows} | {outcome.command: row}
    rows = [entries[name] for name in COMMANDS if name in entries]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    cells = [entry | {"errors": len(entry["errors"]), "commit": entry["commit"][:7]} for entry in rows]
    table = markdown(list(COLUMNS.values()), [[str(entry[name]) for name in COLUMNS] for entry in cells])
    (OUT / "kills.md").write_text(f"# Random kill -9 of whole commands\n\n`make kill`, by command.\n\n{table}")


def main() -> int:
    """Return 0 if the table is all zeros."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", choices=[[], *COMMANDS], default=[])
    parser.add_argument("--kills", type=int, default=100, help="in all, shared by the commands")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = arguments.commands or list(COMMANDS)
    clean = True
    for name in names:
        outcome = campaign(name, -(-arguments.kills // len(names)), arguments.seed)
        write(outcome, arguments.seed)
        clean = clean and outcome.clean
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
