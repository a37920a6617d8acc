"""Reads ``params.yaml``: one profile, or one error that lists every problem of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from persres.config.extends import ancestry, extended
from persres.config.legacy import old_names, translate
from persres.config.problems import no_variant, problem_lines
from persres.config.schema import Profile, SettingsTypes
from persres.errors import PersresError
from persres.package_paths import PACKAGE
from persres.untrusted.documents import read_yaml
from persres.untrusted.text import printable

MOST_BYTES = 4 << 20
MOST_LINES, LONGEST_LINE = 50, 500  # of problems in one message


def default_params() -> Path:
    """./params.yaml if it exists, else the file that ships with the package."""
    local = Path("params.yaml")
    return local if local.exists() else PACKAGE / local


def read_params(path: Path) -> dict[str, Any]:
    """The parsed file: ``profile`` and the profiles. Raises PersresError if it is missing or invalid."""
    if not path.exists():
        raise PersresError(f"{path} not found; run from the folder that holds it")
    raw = read_yaml(path, dict[str, Any], "correct it", MOST_BYTES)
    if not isinstance(raw.get("profile"), str):
        raise PersresError(f"{path}: the key 'profile' is missing or no text; it names the profile to run")
    return raw


def read_setting(path: Path, profile: str | None, section: str, key: str) -> Any:
    """One setting, unchecked, without importing anything heavy; None if the file does not set it."""
    raw = read_params(path)
    chosen = raw["profile"] if profile is None else profile
    value: Any = extended(raw, chosen, path) if chosen in raw else None
    for name in (section, key):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def load_params(path: Path, profile: str | None, types: SettingsTypes) -> Profile:
    """The selected profile. Raises PersresError with all problems in one message; old names are refused with the new ones."""
    raw, name, merged_settings = read_profile(path, profile)
    _check_form(path, name, merged_settings)
    problems, settings = list(old_names(merged_settings)), translate(merged_settings)
    try:
        validated = Profile.model_validate({} if settings is None else settings, context={"types": types})
    except ValidationError as error:
        problems += [*problem_lines(error), *_unknown_variants(settings)]
    if problems:
        lines = [f"{_origin(raw, ancestry(raw, name, path), line)}.{line}" for line in dict.fromkeys(problems)]
        raise PersresError(f"{path} has these problems:\n{_as_lines(lines)}")
    return validated


def read_profile(path: Path, profile: str | None) -> tuple[dict[str, Any], str, Any]:
    """The parsed file, the selected profile's name, and its unchecked settings with those that it inherits.

    Raises PersresError if there is no such profile, or for what it ``extends``.
    """
    raw = read_params(path)
    name = raw["profile"] if profile is None else profile
    if name not in raw or name == "profile":
        known = ", ".join(sorted(raw.keys() - {"profile"}))
        raise PersresError(f"{path}: no profile {printable(name, 100)!r}; one of {printable(known)}")
    return raw, name, extended(raw, name, path)


def _origin(raw: dict[str, Any], names: list[str], line: str) -> str:
    """The profile among the named ones that holds the setting of a problem's line; the first if none does."""
    keys = line.partition(":")[0].split(".")
    for name in names:
        value = raw[name]
        while keys and isinstance(value, dict) and keys[0] in value:
            value, *keys = value[keys[0]], *keys[1:]
        if not keys:
            return name
        keys = line.partition(":")[0].split(".")
    return names[0]


def _check_form(path: Path, name: str, settings: Any) -> None:
    """Raises PersresError for keys that are no text, and for other values where the schema's own code reads mappings."""
    problems = list(_odd_keys(settings))
    train = settings.get("train") if isinstance(settings, dict) else None
    for key in ("default", "variants"):
        if isinstance(train, dict) and not isinstance(train.get(key, {}), dict):
            problems.append(f"train.{key}: must be a mapping of settings")
    if problems:
        raise PersresError(f"{path} has these problems:\n{_as_lines([f'{name}.{line}' for line in problems])}")


def _odd_keys(value: Any, path: str = "") -> Iterator[str]:
    """A line for every key that is no text: YAML reads 5 and null without quotes as others."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict) and not isinstance(key, str):
            yield f"{path}{key}: the key {key!r} is no text; write it in quotes"
        yield from _odd_keys(inner, f"{path}{key}.")


def _as_lines(problems: list[str]) -> str:
    lines = [f"  {printable(line, LONGEST_LINE)}" for line in problems[:MOST_LINES]]
    more = len(problems) - MOST_LINES
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def _unknown_variants(raw: Any) -> list[str]:
    """Unknown variants that configs name, from the raw file: the schema checks them only where all sections are valid."""
    try:
        variants, configs = raw["train"]["variants"], raw["sample"]["configs"]
        used = {name: settings["variant"] for name, settings in configs.items() if settings.get("variant")}
        return [no_variant(name, v, list(variants)) for name, v in used.items() if v not in variants]
    except (KeyError, TypeError, AttributeError):
        return []  # absent, or of a wrong type, which the schema reports
