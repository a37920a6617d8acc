"""What the ``persres`` header of a learned file tells, by name: for cards, and for what is exported from it."""

from __future__ import annotations

import hashlib
from typing import Any

UNKNOWN = "unknown: the dataset does not say"


def header_facts(info: dict[str, Any], licence: str = "") -> dict[str, Any]:
    """Facts by name. The base model's weight hash is there where the model was a folder, as the hash of its files; ``licence`` is the
    photos', which the header does not know. Raises KeyError where the header is not one that training writes."""
    spec = info["spec"]
    model, _, weights = spec["model"].partition("@")
    photos = sorted(photo["digest"] for photo in spec["photos"])
    return {
        "format": info["format"],
        "base_model": model,
        "base_model_weights": weights or None,
        "resolution": spec["base"]["resolution"],
        "concept": spec["concept"],
        "v_star": spec["base"]["token"],
        "rare_token": spec["base"]["rare_token"],
        "macro_class": spec["macro_class"],
        "variant": spec["variant"],
        "settings": spec["settings"],
        "spec_hash": info["spec_hash"],
        "dataset_hash": hashlib.sha256("\n".join(photos).encode()).hexdigest(),
        "photos": len(photos),
        "photos_licence": licence or UNKNOWN,
        "code": spec["code"],
        "versions": info["versions"],
        "parameters": info["parameters"],
    }
