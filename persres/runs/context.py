"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from persres.config import Profile


@dataclass(frozen=True)
class Context:
    """Settings, the published folder and the scratch folder."""

    profile: Profile
    data: Path = Path("data")
    work: Path = Path(".work")
