"""Which file is which rival: one place that turns settings into a plan, and a variant into its words in a prompt."""

from __future__ import annotations

from persres.errors import PersresError
from persres.methods import custom_diffusion, dreambooth, textual_inversion, vico
from persres.methods.lessons import Pictures, Plan
from persres.methods.settings import CustomDiffusion, DreamBooth, Settings, TextualInversion, ViCo
from persres.models import SDXL, Diffusion, pipeline_name
from persres.params import Base, Train
from persres.seeding import generator

_FILES = {"textual_inversion": textual_inversion, "dreambooth": dreambooth, "custom_diffusion": custom_diffusion,
          "vico": vico}  # fmt: skip


def plan_for(
    diffusion: Diffusion, settings: Settings, photos: Pictures, prior: Pictures | None, base: Base, macro_class: str
) -> Plan:
    """What trains, at which rate, on what."""
    if isinstance(settings, TextualInversion):
        return textual_inversion.plan(diffusion, settings, photos, base.token, macro_class)
    if isinstance(settings, DreamBooth):
        return dreambooth.plan(diffusion, settings, photos, prior, base.rare_token, macro_class)
    if isinstance(settings, ViCo):
        return vico.plan(
            diffusion, settings, photos, base.token, macro_class, generator("vico", macro_class, settings.seed)
        )
    assert isinstance(settings, CustomDiffusion)
    return custom_diffusion.plan(diffusion, settings, photos, prior, base.token, macro_class)


def check_available(base: Base, train: Train) -> None:
    """Raises PersresError, before any work, for a variant that the base model's family can't train: the rivals and V*'s
    own embedding are written for one text tower."""
    settings = {name: train.variant(name).model_dump() for name in train.variants}
    asked = {name: told.get("method", "train_token") for name, told in settings.items()
             if "method" in told or told["train_token"]}  # fmt: skip
    if asked and pipeline_name(base.model) == SDXL:
        name, what = next(iter(asked.items()))
        raise PersresError(
            f"train.variants.{name}: {what} is not available for SDXL models ({base.model}); leave it out, or take a"
            " Stable Diffusion 1.x or 2.x model"
        )


def phrase_for(settings: dict, base: Base, macro_class: str) -> str:
    """What stands for the concept in a prompt: V* and the class, or as the rival or the ablation has it."""
    rival = _FILES.get(settings.get("method", ""))
    if rival is not None:
        return rival.phrase(base.token, base.rare_token, macro_class)
    return f"{base.token} {macro_class}" if settings.get("name_class", True) else base.token
