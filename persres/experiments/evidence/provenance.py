"""What a set of figures was made by: weights, settings, versions, and the digest of the code that computes them.

Pages say when today's code is another (:func:`code_line`), so figures can't go stale unseen: a change of the code behind them
makes the test of the pages fail until they are measured again, or ``persres dev pages`` writes there that they are older.
"""

from __future__ import annotations

from persres.config.schema import Profile
from persres.datasets.registry import CLASSIFIERS
from persres.methods.common.registry import method_names
from persres.metrics.scores import SCORE_MODULES
from persres.package_paths import PACKAGE
from persres.stages.jobs import JOB_TYPES
from persres.units.code_digest import digest_modules, modules_behind
from persres.units.files import digest_folder
from persres.units.provenance import versions

WEIGHTS = PACKAGE / "miniworld" / "weights"
# The chain from photos to scores, with every method and every judge; and what the evidence measures beyond it.
CHAIN_CODE = (
    *(module for stage in ("class_images", "train", "sample", "score") for module in JOB_TYPES[stage].code_modules()),
    "persres.metrics.nouns",
    "persres.metrics.summary",
    "persres.datasets.miniworld",
    *(f"persres.methods.{name}" for name in method_names()),
    *SCORE_MODULES,
    *CLASSIFIERS.values(),
)
EVIDENCE_CODE = (
    *CHAIN_CODE,
    "persres.experiments.evidence.claims",
    "persres.experiments.evidence.localisation",
    "persres.experiments.evidence.scenes",
)


def code_of(modules: tuple[str, ...]) -> str:
    """16 hex digits over the named modules and what they import."""
    return digest_modules(modules_behind(modules))


def weight_digests() -> dict[str, str]:
    """Digest of each shipped model's folder, wherever the package lies."""
    return {name: digest_folder(WEIGHTS / name)[:16] for name in ("sd", "clip", "dino", "judge")}


def provenance(profile: Profile, modules: tuple[str, ...]) -> dict:
    """Which code, weights and settings figures belong to; tests compare them with those of today."""
    settings = profile.model_dump(mode="json", exclude={"runtime"})
    return {"code": code_of(modules), "weights": weight_digests(), "settings": settings, "versions": versions()}


def stands_for(recorded: dict, modules: tuple[str, ...]) -> bool:
    """Whether figures are today's code's: made by it, or by code that was shown to compute the same (persres.experiments.evidence.same)."""
    return code_of(modules) in (recorded.get("code"), recorded.get("same", {}).get("code"))


def code_line(recorded: dict, modules: tuple[str, ...], command: str) -> str:
    """One line for a page: by which code, and whether that is today's."""
    made, today = recorded.get("code"), code_of(modules)
    if made == today:
        return f"These figures were made by the present code (digest `{made}`).\n"
    if stands_for(recorded, modules):
        return f"These figures were made by older code (digest `{made}`). The present code (`{today}`) {_alike(recorded['same'])}\n"
    whose = f"older code (digest `{made}`)" if made else "older code (of no recorded digest)"
    return f"**These figures were made by {whose}**; the present code is `{today}`: run `{command}` again.\n"


def _alike(same: dict) -> str:
    """What was found of two codes: the same bits, or how near they are, and how near the older one is to itself."""
    compared = ", ".join(f"{count:,} {what}" for what, count in same["compared"].items())
    if "largest" not in same:
        return f"computes the same bits in a cut-down run of both: {compared} (`persres same`)."
    shown = "; ".join(_measure(name, same) for name in _headlines(same))
    return (
        f"computes the same within stated tolerances in a cut-down run of both: {compared} (`persres same`). Largest differences: {shown}."
        f" The control is {same['control']['what']}."
    )


def _headlines(same: dict) -> list[str]:
    """What was learned, what was drawn, and of all the rest the measure that is nearest to its tolerance."""
    first = [name for name in ("tensors, mean", "pictures, levels") if name in same["largest"]]
    rest = [name for name in same["largest"] if name not in first]
    return first + sorted(rest, key=lambda name: -same["largest"][name] / (same["tolerance"][name] or 1))[:1]


def _measure(name: str, same: dict) -> str:
    found = {
        "": same["largest"][name],
        "tolerance ": same["tolerance"][name],
        "control ": same["control"]["largest"].get(name, 0),
    }
    value, *others = [f"{what}{number:.2g}" for what, number in found.items()]
    return f"{name.replace('_', ' ')} {value} ({', '.join(others)})"
