"""Settings that several methods share: residuals, and class images."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from persres.config.schema import ClassImageRequest, SamplingConfig, VariantSettings
from persres.residuals.parametrisations import PARAMETRISATIONS
from persres.residuals.targets import TARGET_MODULES

Crop = Literal["center", "pad", "bucket"]


class WithClassImages(VariantSettings):
    """A variant that may train on class images, sampled by the base model, next to the photos."""

    prompt: str = "a photo of a {}"
    num_class_images: int = Field(200, ge=0)
    prior_weight: float = Field(1.0, ge=0)

    def class_images(self) -> ClassImageRequest | None:
        """A request for ``num_class_images`` images; their prompt is the variant's, with the class only."""
        return ClassImageRequest(prompt=self.prompt, count=self.num_class_images) if self.num_class_images else None


class ResidualSettings(WithClassImages):
    """How residuals train (paper 3.2 and 4.1), and the paper's ablations."""

    target: Literal[tuple(TARGET_MODULES)] = "proj_out"  # the other two are ablations
    rank_ratio: float = Field(0.05, gt=0)
    rank: int | None = Field(None, ge=1)  # a fixed rank instead of the ratio (table 5)
    init: Literal[tuple(PARAMETRISATIONS)] = "scaled_normal"
    init_gain: float = Field(0.01, gt=0)
    name_class: bool = True  # ablation: false names the concept by V* only, in training and sampling
    crop: Crop = "center"  # extension (persres/training/framing.py): how a photo becomes a training image
    num_class_images: int = Field(0, ge=0)  # ablation: class images of the base model
    train_token: bool = False  # ablation: V*'s embedding trains too
    # extension (persres/training/early_stopping.py): `early` may stop a concept before its last step
    stop: Literal["steps", "early"] = "steps"
    early_stop_every: int = Field(25, ge=1)  # steps between two checks
    early_stop_draws: int = Field(16, ge=1)  # noises and timesteps of a check, one U-Net pass
    # stop when the loss changed by less than this share of its total decrease since the last check
    early_stop_below: float = Field(0.1, gt=0, lt=1)

    def whole_photos(self) -> bool:
        """Whether training frames the photos itself."""
        return self.crop != "center"

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later settings at their defaults, so that specs and their hashes stay what they were before these settings."""
        values = serialize(self)
        return {key: value for key, value in values.items() if (key, value) != ("crop", "center")}

    def lacks(self, sampling: SamplingConfig) -> str | None:
        """Why the variant cannot be sampled like this, or None: masks need residuals of ``proj_out``."""
        if sampling.lag and self.target != "proj_out":
            return f"lag: masks apply to residuals of proj_out, but {sampling.variant} trains {self.target}"
        return None
