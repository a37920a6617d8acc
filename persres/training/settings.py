"""Settings that several methods share: residuals, and images of the class beside the photos."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persres.config.schema import ClassImageRequest, SamplingConfig, VariantSettings


class WithClassImages(VariantSettings):
    """A variant that may learn images of the class, drawn by the base model, beside the photos."""

    prompt: str = "a photo of a {}"
    num_class_images: int = Field(200, ge=0)
    prior_weight: float = Field(1.0, ge=0)

    def class_images(self) -> ClassImageRequest | None:
        """As many as ``prior_images`` says; their prompt is the variant's own with the class alone in it."""
        return ClassImageRequest(prompt=self.prompt, count=self.num_class_images) if self.num_class_images else None


class ResidualSettings(WithClassImages):
    """How residuals are learned (paper 3.2 and 4.1), and the paper's ablations."""

    target: Literal["proj_out", "proj_in", "attn_kv"] = "proj_out"  # the other two are ablations
    rank_ratio: float = Field(0.05, gt=0)
    rank: int | None = Field(None, ge=1)  # a fixed rank in place of the ratio (table 5)
    init: Literal["scaled_normal", "normal", "lora"] = "scaled_normal"
    init_gain: float = Field(0.01, gt=0)
    name_class: bool = True  # ablation: false names the concept by V* alone, here and in sampling
    num_class_images: int = Field(0, ge=0)  # ablation: class images by the base model, learned beside the photos
    train_token: bool = False  # ablation: V*'s embedding learns too
    # past the paper (persres/training/early_stopping.py): `settled` may stop a concept before its steps are up
    stop: Literal["steps", "early"] = "steps"
    early_stop_every: int = Field(25, ge=1)  # steps between two checks
    early_stop_draws: int = Field(16, ge=1)  # noises and timesteps of a check: one forward pass of as many samples
    early_stop_below: float = Field(
        0.1, gt=0, lt=1
    )  # settled: less of the loss's whole fall has moved since the last check

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Masks act on residuals of ``proj_out``."""
        if sampling.lag and self.target != "proj_out":
            return f"lag: masks act on residuals of proj_out, but {sampling.variant} trains {self.target}"
        return None
