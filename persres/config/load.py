"""Reads ``params.yaml``: one profile, or one error that lists every problem of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persres.config.legacy import old_names, translate
from persres.config.problems import no_variant, problem_lines
from persres.config.schema import Profile, SettingsTypes
from persres.errors import PersresError
from persres.package_paths import PACKAGE
from persres.untrusted.documents import read_yaml


def default_params() -> Path:
    """./params.yaml if it exists, else the file that ships with the package."""
    local = Path("params.yaml")
    return local if local.exists() else PACKAGE / local


def read_params(path: Path) -> dict[str, Any]:
    """The parsed file: ``profile`` and the profiles. Raises PersresError if it is missing or invalid."""
    if not path.exists():
        raise PersresError(f"{path} not found; run from the folder that holds it")
    raw = read_yaml(path, dict[str, Any], "correct it")
    if not isinstance(raw.get("profile"), str):
        raise PersresError(f"{path}: the key 'profile' is missing or no text; it names the profile to run")
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
    _check_keys(raw[name], name, path)
    problems, settings = list(old_names(raw[name])), translate(raw[name])
    try:
        validated = Profile.model_validate(settings or {}, context={"types": types})
    except ValidationError as error:
        problems += [*problem_lines(error), *_unknown_variants(settings)]
    if problems:
        lines = "\n".join(f"  {name}.{line}" for line in dict.fromkeys(problems))
        raise PersresError(f"{path} has these problems:\n{lines}")
    return validated


def _check_keys(settings: Any, where: str, path: Path) -> None:
    """Raises PersresError for a key that YAML reads as a number, a date or nothing: names are text."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if not isinstance(key, str):
            raise PersresError(f"{path}: {where}: the key {key!r} is no text; write it in quotes")
        _check_keys(value, f"{where}.{key}", path)


def _unknown_variants(raw: Any) -> list[str]:
    """Unknown variants that configs name, from the raw file: the schema checks them only where all sections are valid."""
    try:
        variants, configs = raw["train"]["variants"], raw["sample"]["configs"]
        used = {name: settings["variant"] for name, settings in configs.items() if settings.get("variant")}
        return [no_variant(name, v, list(variants)) for name, v in used.items() if v not in variants]
    except (KeyError, TypeError, AttributeError):
        return []  # absent, or of a wrong type, which the schema reports
