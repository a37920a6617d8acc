"""One safetensors file with a whole Stable Diffusion model, in the original (LDM) layout that A1111, ComfyUI and Civitai use.

Only the names and shapes of its tensors are read here. diffusers can't tell SD 2.x models that predict noise from those that predict
velocity by their files, and would sample one of them wrongly, so SD 2.x needs its configuration next to it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from safetensors import safe_open

from persres.errors import PersresError
from persres.untrusted.pickled import REASON, SUFFIXES, conversion_command

SUFFIX = ".safetensors"
UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
CHANNELS = 4  # of latents
# By the start of the text encoder's keys.
FAMILIES = {
    "conditioner.embedders.1.": "sdxl",
    "conditioner.embedders.0.model.": "SDXL's refiner",
    "cond_stage_model.model.": "sd2",
    "cond_stage_model.": "sd1",
    "text_encoders.": "Stable Diffusion 3",
}
CONFIGS = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


@lru_cache(maxsize=8)
def family_of(path: Path) -> str:
    """Returns ``sd1``, ``sd2`` or ``sdxl``. Raises PersresError for a pickle, an unreadable file and any other content."""
    _check_kind(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            channels = file.get_slice(FIRST_LAYER).get_shape()[1] if FIRST_LAYER in names else CHANNELS
    except Exception as error:  # whatever the library raises is the file's fault
        raise PersresError(f"{path} is not a readable safetensors file ({error}); fetch the model again") from error
    family = next((family for start, family in FAMILIES.items() if _any_starts(names, start)), None)
    _check_content(path, names, family)
    if channels != CHANNELS:
        raise PersresError(
            f"{path} has a U-Net of {channels} input channels, as models for inpainting or editing; give a text-to-image model"
        )
    return family


def config_of(path: Path) -> str:
    """Returns the folder or hub's name with a file's configuration and tokenizer: the folder of its name next to it, else the hub's.

    Raises PersresError as :func:`family_of`, and for SD 2.x without such a folder.
    """
    family, folder = family_of(path), path.with_suffix("")
    if (folder / "model_index.json").is_file():
        return str(folder)
    if family in CONFIGS:
        return CONFIGS[family]
    raise PersresError(
        f"{path} is Stable Diffusion 2.x, and its file does not say whether it predicts noise or velocity; put the configuration of its"
        f" diffusers model (all but the weights) in the folder {folder}"
    )


def _check_kind(path: Path) -> None:
    if path.parts[:1] in (("https:",), ("http:",)):
        raise PersresError(f"{'//'.join(str(path).split('/', 1))} is an address; download the file, and give its path")
    if not path.is_file():
        raise PersresError(f"no file {path}; give the base model's file, folder or hub name")
    with path.open("rb") as file:
        start = file.read(9)
    zipped = start[:2] in (b"PK", b"\x80\x02") and start[8:] != b"{"  # a header's length may begin like a pickle
    if zipped or path.suffix.lower() in SUFFIXES:
        raise PersresError(f"{path} is {REASON} {conversion_command(path)}")
    if path.suffix != SUFFIX:  # by which diffusers selects the reader
        raise PersresError(
            f"{path} does not end in {SUFFIX}; give a safetensors file under such a name, a folder or a hub name"
        )


def _check_content(path: Path, names: set[str], family: str | None) -> None:
    """Raises PersresError unless the file has a U-Net, an autoencoder and text encoders of a family that takes residuals."""
    if any(".lora_" in name or "_lora." in name for name in names):
        raise PersresError(f"{path} is a LoRA, not a base model; give the model that it was trained on")
    if not _any_starts(names, f"{UNET}input_blocks."):
        raise PersresError(
            f"{path} has no U-Net of Stable Diffusion ({UNET}input_blocks); give a whole model of 1.x, 2.x or XL, as one file or a folder"
        )
    if family not in ("sd1", "sd2", "sdxl"):
        kind = "a model without text encoder" if family is None else family
        raise PersresError(f"{path} is {kind}; give a whole model of Stable Diffusion 1.x, 2.x or XL")
    if not _any_starts(names, AUTOENCODER):
        raise PersresError(
            f"{path} has no autoencoder ({AUTOENCODER}); give the model's file with its VAE, or a folder"
        )


def _any_starts(names: set[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
