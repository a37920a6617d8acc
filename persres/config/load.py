"""Reads ``params.yaml``: one profile, or one error that lists every problem of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from persres.config.legacy import old_names, translate
from persres.config.problems import no_variant, problem_lines
from persres.config.schema import Profile, SettingsTypes
from persres.errors import PersresError
from persres.package_paths import PACKAGE


def default_params() -> Path:
    """./params.yaml if it exists, else the file that ships with the package."""
    local = Path("params.yaml")
    return local if local.exists() else PACKAGE / local


def read_params(path: Path) -> dict[str, Any]:
    """The parsed file: ``profile`` and the profiles. Raises PersresError if it is missing or invalid."""
    if not path.exists():
        raise PersresError(f"{path} not found; run from the folder that holds it")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise PersresError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or "profile" not in raw:
        raise PersresError(f"{path}: the key 'profile' is missing; it names the profile to run")
    return raw


def read_setting(path: Path, profile: str | None, section: str, key: str) -> Any:
    """One setting, unchecked, without importing anything heavy; None if the file does not set it."""
    raw = read_params(path)
    value: Any = raw.get(profile or raw["profile"])
    for name in (section, key):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def load_params(path: Path, profile: str | None, types: SettingsTypes) -> Profile:
    """The selected profile. Raises PersresError with all problems in one message; old names are refused with the new ones."""
    raw = read_params(path)
    name = profile or raw["profile"]
    if name not in raw or name == "profile":
        raise PersresError(f"{path}: no profile {name!r}; one of {', '.join(sorted(raw.keys() - {'profile'}))}")
    problems, settings = list(old_names(raw[name])), translate(raw[name])
    try:
        validated = Profile.model_validate(settings or {}, context={"types": types})
    except ValidationError as error:
        problems += [*problem_lines(error), *_unknown_variants(settings)]
    if problems:
        lines = "\n".join(f"  {name}.{line}" for line in dict.fromkeys(problems))
        raise PersresError(f"{path} has these problems:\n{lines}")
    return validated


def _unknown_variants(raw: Any) -> list[str]:
    """Unknown variants that configs name, from the raw file: the schema checks them only where all sections are valid."""
    try:
        variants, configs = raw["train"]["variants"], raw["sample"]["configs"]
        used = {name: settings["variant"] for name, settings in configs.items() if settings.get("variant")}
        return [no_variant(name, v, list(variants)) for name, v in used.items() if v not in variants]
    except (KeyError, TypeError, AttributeError):
        return []  # absent, or of a wrong type, which the schema reports
