"""Provenance in an exported file's header: facts of the residual's header, and scores and photo licence of the model card next to it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from persres.residuals.header import header_facts

log = logging.getLogger(__name__)
ENTRY = "persres_about"
MAX_CARD = 1 << 20  # bytes; ours have 3 KiB


def export_metadata(path: Path, info: dict[str, Any]) -> dict[str, str]:
    """Returns the header entry for an export of the residual ``path``, whose ``persres`` entry is ``info``.

    JSON with base model and weight hash, concept, V*, settings, code, and the hashes of spec and photos. Empty where training did not write
    the header.
    """
    try:
        facts = header_facts(info)
    except (KeyError, TypeError, AttributeError) as error:
        log.warning("%s: training did not write its header (no %s), so the export has no provenance", path.name, error)
        return {}
    return {ENTRY: json.dumps(facts | _card_facts(path.with_suffix(".md"), facts["spec_hash"]), sort_keys=True)}


def _card_facts(card: Path, spec_hash: str) -> dict[str, Any]:
    """Scores and licence of the card next to a residual, where it is a card of the same training."""
    try:
        if not card.is_file() or card.stat().st_size > MAX_CARD:
            return {}
        entry = yaml.safe_load(card.read_text().split("---\n")[1])["persres"]
        if entry["spec_hash"] != spec_hash:
            log.warning("%s is the card of another training; left out", card.name)
            return {}
        return {"photos_licence": str(entry["photos_licence"]), "scores": _numbers(entry.get("scores") or {})}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        log.warning("%s is not a model card of persres (%s); left out", card.name, str(error)[:80])
        return {}


def _numbers(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means by config and score. A card may come from a stranger, so nothing but numbers passes."""
    return {str(m): {str(k): float(v) for k, v in row.items()} for m, row in scores.items()}
