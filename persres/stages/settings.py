"""settings: the selected profile of params.yaml with what it inherits -> ``data/settings.yaml``, whose keys DVC watches.

Where and how fast (``runtime``) is left out: it changes no result.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from persres.config.load import read_profile
from persres.config.schema import Profile
from persres.errors import PersresError
from persres.units.files import write_atomic
from persres.untrusted.text import printable, quoted

SECTIONS = tuple(name for name in Profile.model_fields if name != "runtime")


def settings_text(params: Path, profile: str | None) -> str:
    """The profile's name and its settings as YAML, every section there, unchecked: the stages check them, with heavier imports.

    Raises PersresError where the profile can't be read or has an unknown section, which no stage would watch.
    """
    _, name, settings = read_profile(params, profile)
    settings = {} if settings is None else settings
    unknown = (
        sorted(set(map(str, settings)) - set(Profile.model_fields)) if isinstance(settings, dict) else ["no mapping"]
    )
    if unknown:
        sections = ", ".join(Profile.model_fields)
        raise PersresError(
            f"{params}: {quoted(name)} has unknown sections ({printable(', '.join(unknown))}); one of {sections}"
        )
    sections = {section: settings.get(section) or {} for section in SECTIONS}
    if isinstance(sections["encoders"], dict):
        sections["encoders"] = {"clip": {}, "dino": {}} | sections["encoders"]  # DVC refuses a key that is missing
    return yaml.safe_dump({"profile": name} | sections, sort_keys=False, allow_unicode=True, width=1000)


def write_settings(params: Path, profile: str | None, data: Path) -> None:
    """Write ``settings.yaml`` into the data folder, unless it is there already."""
    text, path = settings_text(params, profile).encode(), data / "settings.yaml"
    if not path.exists() or path.read_bytes() != text:
        write_atomic(path, text)
