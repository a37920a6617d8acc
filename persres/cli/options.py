"""Options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Params = Annotated[Path | None, typer.Option(help="settings; if left out, ./params.yaml or the package's own")]
Profile = Annotated[str | None, typer.Option(help="a profile other than the one that params.yaml names")]
Data = Annotated[Path, typer.Option(help="where the stages publish")]
Work = Annotated[Path, typer.Option(help="the scratch folder, where finished units are kept")]
Out = Annotated[Path, typer.Option(help="where to publish")]
Repo = Annotated[str, typer.Option(help="a folder or a git URL")]
Remote = Annotated[str | None, typer.Option(help="a DVC remote other than the repository's own")]
Endpoint = Annotated[str | None, typer.Option(help="the S3 server's address as seen from here")]
Dtype = Literal["float32", "bfloat16", "float16"]
Json = Annotated[bool, typer.Option("--json", help="for scripts")]
DATA, WORK = Path("data"), Path(".work")


def params_file(params: Path | None) -> Path:
    """The settings' file that was named, else ./params.yaml or the package's own."""
    from persres.config.load import default_params

    return params or default_params()
