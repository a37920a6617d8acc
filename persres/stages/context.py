"""What every stage is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from persres.params import Profile, load_params


@dataclass(frozen=True)
class Context:
    """Settings, the published folder and the scratch folder."""

    profile: Profile
    data: Path = Path("data")
    work: Path = Path(".work")

    @classmethod
    def load(
        cls,
        params: str | Path = "params.yaml",
        profile: str | None = None,
        data: str | Path = "data",
        work: str | Path = ".work",
    ) -> Context:
        """From a params file. Raises PersresError with all of its problems."""
        return cls(load_params(Path(params), profile), Path(data), Path(work))
