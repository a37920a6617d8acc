"""``persres import``: another tool's LoRA of output projections as a residual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persres.config.schema import Base
from persres.datasets.layout import check_name
from persres.errors import PersresError
from persres.residuals.adapter_metadata import lora_path
from persres.residuals.header import without_folders
from persres.residuals.header_validation import check_structure
from persres.residuals.targets import find_targets
from persres.units.files import digest_file
from persres.untrusted.text import plain_text, quoted

if TYPE_CHECKING:  # a wrong call is an error at once, and torch takes seconds to import
    from torch import nn

    from persres.residuals.lora import Delta


def import_lora(path: Path | str, unet: nn.Module) -> dict[str, Delta]:
    """Returns another tool's LoRA of output projections as a residual's layers, one for each target module of the U-Net.

    Every scale is in A, so alpha is 1 per rank. Layers that the LoRA leaves out are zero. Raises PersresError as
    :func:`~persres.residuals.lora.read_lora` does, and naming the first layer that takes no residual.
    """
    import torch

    from persres.residuals.lora import Delta, read_lora

    deltas = read_lora(path, "", unet, []).unet
    targets = find_targets(unet)
    others = sorted(set(deltas) - {target.path for target in targets})
    if others:
        raise PersresError(
            f"{path}: {others[0]} takes no residual; use the file as a LoRA (generate --subject, load_residual with subject=)"
        )
    zero = {t.path: Delta(torch.zeros(t.width, 1), torch.zeros(1, t.width_in, *(1, 1) * t.conv)) for t in targets}
    return zero | deltas


@dataclass(frozen=True)
class ImportOptions:
    """``name`` of the concept; the default is the file's. ``rare_token``: the word that the LoRA was trained under, whose embedding V* gets.
    ``resolution`` in pixels; the default is the model's."""

    name: str | None = None
    rare_token: str = "sks"
    resolution: int | None = None


def import_residual(
    lora: Path | str,
    model: str,
    macro_class: str,
    options: ImportOptions = ImportOptions(),
    out: Path | str | None = None,
) -> Path:
    """Writes the LoRA as ``<name>.safetensors`` below ``out``, a residual for ``model``; returns the file.

    Raises PersresError where the file holds other layers, the model can't be loaded, or the output would be the LoRA itself.
    """
    given, lora = Path(lora), lora_path(lora)
    name = check_name(options.name or given.stem)
    target = Path(out or given.parent) / f"{name}.safetensors"
    if target.resolve() == lora.resolve():
        raise PersresError(f"{target} is the LoRA itself; give another --name or --out")
    if not plain_text(macro_class, "--class").strip():
        raise PersresError("--class is empty; name the class of the subject, e.g. --class dog")
    check_structure(lora)  # before the model loads
    base = _base({"model": model, "rare_token": options.rare_token})
    from persres.models.diffusion import load_diffusion
    from persres.models.loading import model_identity
    from persres.residuals.file import save_residual

    diffusion = load_diffusion(base, "cpu")
    pixels = options.resolution or diffusion.unet.config.sample_size * diffusion.latent_shape[1]
    base = _base(base.model_dump() | {"resolution": pixels})
    spec = {
        "base": base.model_dump(),
        "model": model_identity(model),
        "concept": name,
        "macro_class": macro_class.strip(),
        "settings": {"target": "proj_out", "name_class": True},
        "imported": {"file": lora.name, "sha256": digest_file(lora)},
    }
    save_residual(target, import_lora(lora, diffusion.unet), {"spec": without_folders(spec)})
    return target


def _base(settings: dict[str, Any]) -> Base:
    try:
        return Base(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        field = problem["loc"][0]
        option = str(field).replace("_", "-")
        raise PersresError(f"{field} {quoted(settings[field])}: {problem['msg']}; give another --{option}") from error
