"""Which file is which rival: one place that turns settings into a plan, and a variant into its words in a prompt."""

from __future__ import annotations

from persres.methods import custom_diffusion, dreambooth, textual_inversion, vico
from persres.methods.lessons import Pictures, Plan
from persres.methods.settings import CustomDiffusion, DreamBooth, Settings, TextualInversion, ViCo
from persres.models import Diffusion
from persres.params import Base
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


def phrase_for(settings: dict, base: Base, macro_class: str) -> str:
    """What stands for the concept in a prompt: V* and the class, or as the rival or the ablation has it."""
    rival = _FILES.get(settings.get("method", ""))
    if rival is not None:
        return rival.phrase(base.token, base.rare_token, macro_class)
    return f"{base.token} {macro_class}" if settings.get("name_class", True) else base.token
