"""Provenance of measured figures: commit, date, weights, settings and library versions."""

from __future__ import annotations

from datetime import UTC, datetime

from persres.config.schema import Profile
from persres.package_paths import PACKAGE
from persres.units.code_digest import digest_modules, modules_behind
from persres.units.files import digest_folder
from persres.units.provenance import versions

WEIGHTS = PACKAGE / "miniworld" / "weights"


def code_of(modules: tuple[str, ...]) -> str:
    """Return a digest of the named modules and their imports (16 hex digits), for the specs of units."""
    return digest_modules(modules_behind(modules))


def weight_digests() -> dict[str, str]:
    """Return the digest of each shipped model's folder."""
    return {name: digest_folder(WEIGHTS / name)[:16] for name in ("sd", "clip", "dino", "judge")}


def provenance(profile: Profile) -> dict:
    """Return what produced a set of figures; the settings without ``runtime``."""
    settings = profile.model_dump(mode="json", exclude={"runtime"})
    commit, date = versions().get("commit"), datetime.now(UTC).date().isoformat()
    return {"commit": commit, "date": date, "weights": weight_digests(), "settings": settings, "versions": versions()}


def measured_line(record: dict) -> str:
    """Return one line for a page: commit and date of the measurement."""
    return f"Measured at commit `{(record['commit'] or 'unknown')[:7]}` on {record['date']}.\n"
