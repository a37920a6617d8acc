"""Provenance in an exported file's header: facts of the residual's header, and scores and photo licence of the model card next to it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, FiniteFloat, StringConstraints

from persres.errors import PersresError
from persres.residuals.header import header_facts
from persres.untrusted.documents import parse_yaml, read_file

log = logging.getLogger(__name__)
ENTRY = "persres_about"
MAX_CARD = 1 << 20  # bytes; ours have 3 KiB


def provenance(path: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts for an export of the residual ``path``, whose ``persres`` entry is ``info``.

    Base model and weight hash, concept, V*, settings, code, and the hashes of spec and photos; scores and licence of the card next to it.
    Empty where training did not write the header.
    """
    try:
        facts = header_facts(info)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        log.warning("%s: training did not write its header (no %s), so the export has no provenance", path.name, error)
        return {}
    return facts | _card_facts(path.with_suffix(".md"), facts["spec_hash"])


def provenance_entry(about: dict[str, Any]) -> dict[str, str]:
    """Returns the header's entry for :func:`provenance`, none where there is none."""
    return {ENTRY: json.dumps(about, sort_keys=True)} if about else {}


class _Facts(BaseModel):
    """What an export takes from a card. It may come from a stranger, so nothing but numbers passes as scores."""

    spec_hash: str
    photos_licence: Annotated[str, StringConstraints(max_length=1000)]
    scores: dict[str, dict[str, int | FiniteFloat]] | None = None


class _Card(BaseModel):
    persres: _Facts


def _card_facts(card: Path, spec_hash: str) -> dict[str, Any]:
    """Scores and licence of the card next to a residual, where it is a card of the same training."""
    if not card.is_file():
        return {}
    try:
        text = read_file(card, MAX_CARD).decode(errors="replace")
        facts = parse_yaml(text.removeprefix("---\n").partition("---\n")[0], _Card, card.name).persres
    except PersresError as error:
        log.warning("%s is not a model card of persres (%s); left out", card.name, error)
        return {}
    if facts.spec_hash != spec_hash:
        log.warning("%s is the card of another training; left out", card.name)
        return {}
    return {"photos_licence": facts.photos_licence, "scores": facts.scores or {}}
