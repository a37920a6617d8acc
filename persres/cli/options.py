"""Options that several commands share, with their help, and the checks of what a user types."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from persres.errors import PersresError
from persres.package_paths import SCHEME
from persres.untrusted.pickled import SUFFIXES
from persres.untrusted.text import plain_text, printable

LONGEST_PATH = 4096
LARGEST_SEED = 2**63 - 1
HUB_NAME, HUB_EXAMPLE = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"), "stable-diffusion-v1-5/stable-diffusion-v1-5"
MODEL_FILES = (".safetensors", *SUFFIXES)
DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")  # as in persres/config/schema.py


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


def check_model(name: str | None) -> None:
    """Raises PersresError for a base model that is neither a name of the hub nor a file or folder, which a mistyped path is."""
    if name is None or name.startswith(SCHEME) or Path(name).exists():
        return
    if not HUB_NAME.fullmatch(name) or name.endswith(MODEL_FILES):
        raise PersresError(
            f"--model: no file or folder {printable(name, 200)}; give one, or a name of the hub such as {HUB_EXAMPLE}"
        )


def usable_device(text: str | None) -> str | None:
    """A device that a user typed. Raises typer.BadParameter for what is none on any machine."""
    if text is not None and not DEVICE.fullmatch(words(text)):
        raise typer.BadParameter(f"{printable(repr(text), 100)} is no device; give cpu, cuda, cuda:1, mps or auto")
    return text


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
Device = Annotated[str, typer.Option(callback=usable_device, help="cpu, cuda, mps or auto")]
Dtype = Literal["float32", "bfloat16", "float16"]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
DATA, WORK = Path("data"), Path(".work")


def params_file(params: Path | None) -> Path:
    """The given settings file, else ./params.yaml or the package's."""
    from persres.config.load import default_params

    return params or default_params()
