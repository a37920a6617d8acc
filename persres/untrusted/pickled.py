"""Pickled weights: opening a pickle runs its code, so they are refused, with the command that converts them where they are trusted."""

from __future__ import annotations

import shlex
from pathlib import Path

SUFFIXES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
REASON = "a pickle, which can run code when it is opened; where you trust it, convert it:"


def conversion_command(path: Path, pipeline: bool = False) -> str:
    """Returns the shell command that converts pickled weights to safetensors next to them: a file's or a diffusers folder's.

    ``pipeline``: the path is a hub's name, and the new folder is made in the working directory.
    """
    if pipeline or path.is_dir():
        code = (
            "import sys, persres; from diffusers import DiffusionPipeline as P;"
            " P.from_pretrained(sys.argv[1], use_safetensors=False, safety_checker=None).save_pretrained(sys.argv[2])"
        )
        target = Path(f"{path.name}-safetensors") if pipeline else path.with_name(f"{path.name}-safetensors")
    else:
        code = (
            "import sys; from torch import is_tensor, load; from safetensors.torch import save_file;"
            ' m = load(open(sys.argv[1], "rb"), "cpu", weights_only=True); m = m.get("state_dict", m);'
            " save_file({k: v.clone() for k, v in m.items() if is_tensor(v)}, sys.argv[2])"
        )
        target = path.with_name(f"{path.stem}{'-converted' * (path.suffix == '.safetensors')}.safetensors")
    return shlex.join(("python", "-c", code, str(path), str(target)))
