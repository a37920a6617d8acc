"""Residuals as a pipeline loads them: factors, V* and the phrase that stands for the concept in prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError
from persres.models.loading import model_identity
from persres.prompts import mentions, numbered
from persres.residuals.bank import ResidualBank
from persres.residuals.file import load_residual
from persres.residuals.header import check_base
from persres.residuals.lora import Lora


@dataclass(frozen=True)
class Residual:
    """One concept's residual. ``phrase`` is V* and its class; ``vector`` is V*'s embedding where it was trained too."""

    bank: ResidualBank
    token: str
    rare_token: str
    phrase: str
    vector: torch.Tensor | None
    concept: str
    info: dict[str, Any]

    def numbered(self, number: int) -> Residual:
        """The same residual with its own V*, for images of several concepts."""
        token = numbered(self.token, number)
        return replace(self, token=token, phrase=self.phrase.replace(self.token, token))


def read_trained(path: Path, unet: nn.Module, text_encoder: nn.Module | None, model: str | None) -> Residual:
    """The residual of a file. ``model`` is the base model to compare with; None takes a residual of any.

    Raises PersresError where the file is no residual, does not fit the model's layers, or was trained on another model.
    """
    residual = load_residual(path)
    header, vector = residual.header, residual.token
    if model is not None:
        check_base(path, header.model, model_identity(model))
    try:
        bank = residual.bank(unet)
    except PersresError as error:
        raise PersresError(f"{path}: {error}") from error
    if vector is not None and text_encoder is not None:  # a pipeline that is given embeddings has no text encoder
        width = text_encoder.get_input_embeddings().embedding_dim
        if len(vector) != width:
            raise PersresError(
                f"{path}: its V* has {len(vector)} numbers, this model's embeddings {width}; load the model it was trained on"
            )
    base = header.base
    return Residual(bank, base.token, base.rare_token, header.phrase, vector, header.concept, header.info)


def check_subject(residual: Residual | Lora, prompts: list[str]) -> None:
    """Raises PersresError for the first prompt without the subject of a LoRA."""
    for prompt in prompts if isinstance(residual, Lora) else []:
        if not mentions(prompt, residual.phrase):
            raise PersresError(
                f"subject {residual.phrase!r} is not in the prompt {prompt!r}; add it, or load the file with the subject that the prompt has"
            )


def check_maskable(residuals: list[Residual | Lora]) -> None:
    """Raises PersresError for the first residual that LAG has no masks for: those of the ablations have other layers than proj_out."""
    for residual in residuals:
        paths = [target.path for target in residual.bank.targets] if isinstance(residual, Residual) else []
        other = next((path for path in paths if not path.endswith(".proj_out")), None)
        if other is not None:
            raise PersresError(
                f"lag: masks apply to residuals of proj_out, but {residual.concept}'s has {other}; use lag=False"
            )
