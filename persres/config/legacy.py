"""Old names of settings: refused in params.yaml with the new name, translated in files that older versions wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

CLASSES = "a concept of macro_class.json"
SCORE_ROWS = "a row of scores.parquet and of the tables"


class Renamed(NamedTuple):
    """One renamed setting. ``old`` and ``new`` are keys, or a key with one of its values: ``stop: settled``."""

    section: str
    old: str
    new: str


RENAMED = (
    Renamed("macro_class", "found", "zero_shot"),
    Renamed("macro_class", "finder", "zero_shot_settings"),
    Renamed("macro_class", "judge", "diffusion_classifier"),
    Renamed("macro_class", "keep", "num_candidates"),
    Renamed("macro_class", "draws", "noise_levels"),
    Renamed("macro_class", "source: found", "source: zero_shot"),
    Renamed("train", "prior_images", "num_class_images"),
    Renamed("train", "settle_every", "early_stop_every"),
    Renamed("train", "settle_draws", "early_stop_draws"),
    Renamed("train", "settle_below", "early_stop_below"),
    Renamed("train", "stop: settled", "stop: early"),
    Renamed("train", "class_source: chosen", "class_source: selected"),
    Renamed("train", "class_source: found", "class_source: zero_shot"),
    Renamed("sample", "methods", "configs"),
    Renamed("sample", "other_concept", "wrong_concept"),
    Renamed("sample", "mask_blocks: confident", "mask_blocks: confidence_weighted"),
    Renamed("sample", "mask_when: sure", "mask_when: high_confidence"),
    Renamed("sample", "class_source: chosen", "class_source: selected"),
    Renamed("sample", "class_source: found", "class_source: zero_shot"),
    Renamed("score", "judge", "attribute_classifier"),
    Renamed("runtime", "train_together", "concepts_per_batch"),
    Renamed("runtime", "recompute", "gradient_checkpointing"),
    Renamed("runtime", "offload", "cpu_offload"),
    Renamed(CLASSES, "chosen", "selected"),
    Renamed(CLASSES, "found", "zero_shot"),
    Renamed(SCORE_ROWS, "method", "config"),
)
_NEW = {(entry.section, entry.old): entry.new for entry in RENAMED}
_NAMED_BY_USER = ("variants", "methods", "configs", "rows")  # mappings whose keys are the user's names


def translate(settings: Any, section: str | None = None) -> Any:
    """The settings with every old key and value replaced. ``section`` is the profile's section that they belong to; None: a whole profile."""
    if not isinstance(settings, dict):
        return settings
    if section is None:
        return {name: translate(inner, name) for name, inner in settings.items()}
    return dict(_entry(key, value, section) for key, value in settings.items())


def _entry(key: str, value: Any, section: str) -> tuple[str, Any]:
    new = _NEW.get((section, key), key)
    if key in _NAMED_BY_USER and isinstance(value, dict):
        return new, {name: translate(inner, section) for name, inner in value.items()}
    replaced = _NEW.get((section, f"{new}: {value}")) if isinstance(value, str) else None
    return new, replaced.partition(": ")[2] if replaced else translate(value, section)


def old_names(settings: Any, section: str | None = None, path: str = "") -> Iterator[str]:
    """One line for every old key or value in the settings, with its path and the new name."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        here = f"{path}.{key}" if path else str(key)
        for old in (key, f"{key}: {value}"):
            if (section, old) in _NEW:
                yield f"{here}: {old!r} is now {_NEW[section, old]!r}"
        if key in _NAMED_BY_USER and section is not None and isinstance(value, dict):
            for name, inner in value.items():
                yield from old_names(inner, section, f"{here}.{name}")
        else:
            yield from old_names(value, section or key, here)
