"""Options that several commands share, with their help, and the checks of what a user types."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from persres.errors import PersresError
from persres.untrusted.text import plain_text

LONGEST_PATH = 4096
LARGEST_SEED = 2**63 - 1


def path(text: str | Path) -> Path:
    """A path that a user typed. Raises typer.BadParameter for an empty one, as an unset variable of a shell gives, and for control
    characters."""
    if not str(text):
        raise typer.BadParameter("the path is empty; give a file or folder")
    try:
        return Path(plain_text(str(text), "path", longest=LONGEST_PATH))
    except PersresError as error:
        raise typer.BadParameter(str(error)) from error


def words(text: str | None) -> str | None:
    """Text that a user typed. Raises typer.BadParameter for an empty one, and for control characters."""
    try:
        if text is not None and not plain_text(text, "text", longest=LONGEST_PATH).strip():
            raise typer.BadParameter("it is empty; give a text, or leave the option out")
        return text
    except PersresError as error:
        raise typer.BadParameter(str(error)) from error


def finite(number: float | None) -> float | None:
    """A number that a user typed. Raises typer.BadParameter for nan, which passes every comparison, and infinity."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no finite number")
    return number


Params = Annotated[
    Path | None, typer.Option(parser=path, help="settings file; default: ./params.yaml or the package's")
]
Profile = Annotated[str | None, typer.Option(help="profile; default: the one that params.yaml names")]
Data = Annotated[Path, typer.Option(parser=path, help="folder of the stages' results")]
Work = Annotated[Path, typer.Option(parser=path, help="scratch folder with finished units")]
Out = Annotated[Path, typer.Option(parser=path, help="output folder")]
Repo = Annotated[str, typer.Option(help="a folder or a git URL")]
Remote = Annotated[
    str | None, typer.Option(help="DVC remote, which may have your credentials; default: the repository's")
]
Endpoint = Annotated[str | None, typer.Option(help="address of the S3 server from this machine; it may have them too")]
Device = Annotated[str, typer.Option(callback=words, help="cpu, cuda, mps or auto")]
Dtype = Literal["float32", "bfloat16", "float16"]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
DATA, WORK = Path("data"), Path(".work")


def params_file(params: Path | None) -> Path:
    """The given settings file, else ./params.yaml or the package's."""
    from persres.config.load import default_params

    return params or default_params()
