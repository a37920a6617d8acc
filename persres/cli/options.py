"""Options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Params = Annotated[Path | None, typer.Option(help="settings file; default: ./params.yaml or the package's")]
Profile = Annotated[str | None, typer.Option(help="profile; default: the one that params.yaml names")]
Data = Annotated[Path, typer.Option(help="folder of the stages' results")]
Work = Annotated[Path, typer.Option(help="scratch folder with finished units")]
Out = Annotated[Path, typer.Option(help="output folder")]
Repo = Annotated[str, typer.Option(help="a folder or a git URL")]
Remote = Annotated[str | None, typer.Option(help="DVC remote; default: the repository's")]
Endpoint = Annotated[str | None, typer.Option(help="address of the S3 server from this machine")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto")]
Dtype = Literal["float32", "bfloat16", "float16"]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
DATA, WORK = Path("data"), Path(".work")


def params_file(params: Path | None) -> Path:
    """The given settings file, else ./params.yaml or the package's."""
    from persres.config.load import default_params

    return params or default_params()
