"""The training so far in a few megabytes, so that another clone can go on: half-precision weights, no optimizer state.

The loop warms up again where a checkpoint has no optimizer state.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from persres.errors import PersresError
from persres.units.checkpoints import read_tensors, write_tensors

FILE = "unet.safetensors"
SAVED = ("param/", "extra/")  # of the loop's checkpoint: the weights and their running mean
SHIPPED = ("clip", "dino", "judge", "sd/text_encoder", "sd/tokenizer")  # parts that this training does not change


def save_checkpoint(work: Path, out: Path) -> None:
    """Write ``out``: the autoencoder and the U-Net's training so far, in half precision. Raises PersresError where nothing was trained."""
    if not (work / FILE).exists():
        raise PersresError(f"no {work / FILE}; train the U-Net first")
    tensors, metadata = read_tensors(work / FILE)
    half = {key: value.half() for key, value in tensors.items() if key.startswith(SAVED)}
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / FILE, half, metadata)
    shutil.copytree(work / "sd" / "vae", out / "vae", dirs_exist_ok=True)


def restore_checkpoint(source: Path, weights: Path, work: Path) -> None:
    """Fill an empty work folder from :func:`save_checkpoint`'s folder, and from the shipped ``weights`` the parts that stay.

    What the work folder has already is left as it is. Raises PersresError without a checkpoint.
    """
    if not (source / FILE).exists():
        raise PersresError(f"no {source / FILE}; it holds a training that was not finished yet")
    parts = {name: weights / name for name in SHIPPED} | {"sd/vae": source / "vae"}
    for name, folder in parts.items():
        if not (work / name).exists():
            shutil.copytree(folder, work / name)
    if not (work / FILE).exists():
        tensors, metadata = read_tensors(source / FILE)
        write_tensors(work / FILE, {key: value.to(torch.float32) for key, value in tensors.items()}, metadata)
