"""Reads ``params.yaml``: a profile by name, or one message with everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from persres.config.schema import Profile, SettingsTypes, no_variant, problem_lines
from persres.errors import PersresError
from persres.package_paths import PACKAGE


def default_params() -> Path:
    """./params.yaml, or where there is none the one that comes with the package."""
    own = Path("params.yaml")
    return own if own.exists() else PACKAGE / own


def read_params(path: Path) -> dict[str, Any]:
    """The file as it stands: ``profile`` and the profiles. Raises PersresError where it is missing or not one."""
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
    """A setting as it stands in the file, unchecked, before anything heavy is imported; None where it doesn't stand there."""
    raw = read_params(path)
    found: Any = raw.get(profile or raw["profile"])
    for name in (section, key):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def load_params(path: Path, profile: str | None, known: SettingsTypes) -> Profile:
    """The chosen profile. Raises PersresError with all problems in one message."""
    raw = read_params(path)
    name = profile or raw["profile"]
    if name not in raw or name == "profile":
        there = ", ".join(sorted(set(raw) - {"profile"}))
        raise PersresError(f"{path}: no profile {name!r}; one of {there}")
    try:
        return Profile.model_validate(raw[name] or {}, context={"known": known})
    except ValidationError as error:
        lines = dict.fromkeys([*problem_lines(error), *_unknown_variants(raw[name])])
        problems = "\n".join(f"  {name}.{line}" for line in lines)
        raise PersresError(f"{path} has these problems:\n{problems}") from error


def _unknown_variants(raw: Any) -> list[str]:
    """Methods of variants that are not there, read off the file itself: the profile looks only where its sections are right,
    and a user wants all in one message."""
    try:
        variants, methods = raw["train"]["variants"], raw["sample"]["configs"]
        named = {name: settings["variant"] for name, settings in methods.items() if settings.get("variant")}
        return [no_variant(name, v, list(variants)) for name, v in named.items() if v not in variants]
    except (KeyError, TypeError, AttributeError):
        return []  # not said, or of a shape that is a problem of its own
