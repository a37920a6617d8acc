"""Headers and files of residuals, as training writes them."""

from __future__ import annotations

from persres.config.schema import Base
from persres.residuals.bank import ResidualBank
from persres.residuals.targets import find_targets
from persres.seeding import generator


def header_info(base: Base | None = None, **spec) -> dict:
    """The ``info`` that :func:`persres.residuals.file.save_residual` takes, with these changes of its spec."""
    base = Base(model="none", resolution=32) if base is None else base
    settings = {"rank_ratio": 0.05, "rank": None, "target": "proj_out", "name_class": True}
    values = {
        "base": base.model_dump(),
        "model": "none",
        "concept": "my_mug",
        "macro_class": "mug",
        "settings": settings,
    }
    return {"spec": values | spec}


def strong_bank(unet, seed: int = 0, **targets) -> ResidualBank:
    """A bank of one concept whose residual is half as strong as its input."""
    bank = ResidualBank(find_targets(unet, **targets))
    return bank.initialise(0, "scaled_normal", 0.5, generator("residual", seed)).requires_grad_(False)
