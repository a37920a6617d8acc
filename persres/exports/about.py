"""What an exported file says of where it comes from: the residual's own header, and of its model card, where that lies beside it, what no
header knows: the scores and the photos' licence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from persres.units.header_facts import header_facts

log = logging.getLogger(__name__)
ENTRY = "persres_about"
MOST_CARD = 1 << 20  # bytes; ours have 3 KiB


def export_metadata(path: Path, info: dict[str, Any]) -> dict[str, str]:
    """The header entry for an export of the residual ``path``, whose ``persres`` entry is ``info``: JSON, with base model and weight hash,
    concept, V*, settings, spec's and photos' hash, code; nothing where the header is not one that training writes."""
    try:
        facts = header_facts(info)
    except (KeyError, TypeError, AttributeError) as error:
        log.warning(
            "%s: its header does not say where it comes from (no %s), so neither will the export", path.name, error
        )
        return {}
    return {ENTRY: json.dumps(facts | _card_says(path.with_suffix(".md"), facts["spec_hash"]), sort_keys=True)}


def _card_says(card: Path, spec_hash: str) -> dict[str, Any]:
    """Scores and licence of the card beside a residual, where it is a card of this training."""
    try:
        if not card.is_file() or card.stat().st_size > MOST_CARD:
            return {}
        said = yaml.safe_load(card.read_text().split("---\n")[1])["persres"]
        if said["spec_hash"] != spec_hash:
            log.warning("%s is the card of another training; left out", card.name)
            return {}
        return {"photos_licence": str(said["photos_licence"]), "scores": _numbers(said.get("scores") or {})}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        log.warning("%s is no model card of persres (%s); left out", card.name, str(error)[:80])
        return {}


def _numbers(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means by method and score; a card may come from a stranger, so nothing but numbers."""
    return {str(m): {str(k): float(v) for k, v in row.items()} for m, row in scores.items()}
