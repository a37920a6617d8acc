"""Command line: ``persres run STAGE`` (what DVC calls), ``show``, ``compare``, ``use``, ``plan`` and ``personalize``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from persres.errors import PersresError
from persres.pipeline import STAGES, load_context, run_stage
from persres.progress import show_logs


def _show(data: Path) -> None:
    table = data / "tables" / "table1.md"
    if not table.exists():
        raise PersresError(f"no {table}; run make repro first")
    print(table.read_text())
    for name in ("table3", "table4", "table5", "differences"):
        path = data / "tables" / f"{name}.md"
        if path.exists():  # without the notes, which table 1 has shown
            print(path.read_text().split("\n\n- ")[0] + "\n")
    print(f"Pictures: {data / 'sheets'}/*.png   Tables: {data / 'tables'}/   Residuals: {data / 'residuals'}/")


def _compare(data: Path, method: str, against: str) -> None:
    """The paired test of any two methods: same prompts, same noise."""
    import pandas as pd

    from persres.metrics.summary import difference, score_columns

    source = data / "scores" / "scores.parquet"
    if not source.exists():
        raise PersresError(f"no {source}; run make repro first")
    rows = pd.read_parquet(source)
    known = list(dict.fromkeys(rows["method"]))
    for name in (method, against):
        if name not in known:
            raise PersresError(f"no method {name!r} among the scores; there are {', '.join(known)}")
    columns = score_columns(rows[rows["method"].isin([method, against])])
    found = difference(rows, columns, method, against, 10_000, 0)
    print(f"{method} - {against}, over {found['concepts']} concepts [95% bootstrap interval], p of the sign-flip test")
    for column in columns:
        ends = f"[{found[f'{column}_low']:+.4f}, {found[f'{column}_high']:+.4f}]"
        print(f"  {column:18} {found[column]:+.4f} {ends}  p {found[f'{column}_p']:.3g}")


def _use(params: Path, profile: str) -> None:
    """Make a profile the one that DVC and every command take: one line of params.yaml."""
    from persres.methods.common.registry import load_profile

    load_profile(params, profile)
    text = params.read_text()
    params.write_text(re.sub(r"^profile:.*$", f"profile: {profile}", text, count=1, flags=re.MULTILINE))
    print(f"{params}: profile: {profile}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="persres", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one stage with the settings of params.yaml")
    run.add_argument("stage", choices=STAGES)
    show = commands.add_parser("show", help="print the score table and where the pictures are")
    compare = commands.add_parser("compare", help="paired test of two methods (same prompts, same noise)")
    compare.add_argument("method")
    compare.add_argument("against")
    use = commands.add_parser("use", help="name a profile in params.yaml")
    use.add_argument("profile")
    plan = commands.add_parser("plan", help="print units, pictures, GPU-hours and disk of a run before it starts")
    for command in (run, show, compare, plan):
        command.add_argument("--data", type=Path, default=Path("data"))
    personalize = commands.add_parser("personalize", help="a folder of photos of one thing -> a residual and pictures")
    _personalize_arguments(personalize)
    for command in (run, plan, personalize, use):
        command.add_argument("--params", type=Path, default=Path("params.yaml"))
    for command in (run, plan):
        command.add_argument("--profile", help="a profile other than the one that params.yaml names")
    run.add_argument("--work", type=Path, default=Path(".work"))
    return parser


def _personalize_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("photos", type=Path, help="a folder with 3 to 15 photos of one thing")
    command.add_argument(
        "--class", dest="macro_class", help="what the thing is, e.g. dog; if left out, the nearest WordNet noun"
    )
    command.add_argument("--name", help="the concept's name; if left out, the folder's")
    command.add_argument(
        "--prompt", action="append", default=[], help="with {} where the thing goes; may be given again"
    )
    command.add_argument(
        "--profile", default="paper", help="whose models and training (paper; mini needs no GPU and no download)"
    )
    command.add_argument("--out", type=Path, help="where to leave it; if left out, personal/<name>")


def main(arguments: list[str] | None = None) -> int:
    """Entry point. 0 on success, 1 with one clear error, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    show_logs()
    try:
        if given.command == "show":
            _show(given.data)
        elif given.command == "compare":
            _compare(given.data, given.method, given.against)
        elif given.command == "use":
            _use(given.params, given.profile)
        elif given.command == "plan":
            from persres.plan import print_plan

            print_plan(given.params, given.profile, given.data)
        elif given.command == "personalize":
            from persres.personalize import Wish, personalize

            wish = Wish(given.photos, given.macro_class, given.name, tuple(given.prompt), given.out)
            personalize(wish, given.params, given.profile)
        else:
            run_stage(given.stage, load_context(given.params, given.profile, given.data, given.work))
    except PersresError as error:
        print(f"persres: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"persres: {error.strerror or error}: {error.filename}; free some space, or make the folder writable",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("persres: stopped; finished units are kept, run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
