"""Which code a result was made by: a digest of the modules that compute it, derived from their imports.

A unit's spec holds the digest of the code behind its work: the module that does it and whatever that imports, and so on. What
decides only where, when and in which order things run is left out (:data:`ORCHESTRATION`): its settings reach a result through
the spec. A method's file is reached by its name in the spec, so a change of one rival redoes that rival alone.

The digest is of what is computed: syntax trees without docstrings, formatting and the names of modules
(:mod:`persres.units.canonical_code`), in no order. Where a module lies, and what it is called, does not change it. The imports are read,
not run, and a test holds that this finds what Python loads.

Why not a version number per method: it is forgotten when a shared module changes, and nothing would notice.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

from persres.units.canonical_code import canonical

PACKAGE = Path(__file__).parent.parent
ORCHESTRATION = (
    "persres",
    "persres.config",
    "persres.errors",
    "persres.logging",
    "persres.units",
    "persres.stages",
    "persres.versions",  # brings files, each known by its digest
    "persres.workflow",
    "persres.untrusted.fields",  # types of what units record
    "persres.models.compat",  # lets torchvision be imported
    "persres.training.previews",  # shows a training, and changes nothing of it
    "persres.methods.common.registry",
    "persres.methods.common.base",
    "persres.datasets.registry",
    "persres.metrics.scores",
    "persres.experiments.extensions.study",
    "persres.experiments.evidence.provenance",
)
FOLDERS = ("persres.config", "persres.units", "persres.stages", "persres.versions")  # of those, all modules


def module_file(name: str, package: Path = PACKAGE) -> Path | None:
    """The file of one of our modules, or None where there is none of that name."""
    path = package.joinpath(*name.split(".")[1:])
    if path.with_suffix(".py").is_file() and name != "persres":
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imports_of(name: str, package: Path = PACKAGE) -> set[str]:
    """Our modules that a module imports, inside functions too, and the packages that they lie in."""
    path = module_file(name, package)
    names = _imported(path.read_text()) if path is not None else frozenset()
    ours = {module for module in names if module.split(".")[0] == "persres" and module_file(module, package)}
    return {part for module in ours for part in _with_packages(module)} - {"persres"}


@lru_cache(maxsize=1024)
def _imported(text: str) -> frozenset[str]:
    """Dotted names that a module's text imports; each may be a module or a name in one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _with_packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _left_out(module: str) -> bool:
    return module in ORCHESTRATION or any(module.startswith(f"{name}.") for name in FOLDERS)


@lru_cache
def modules_behind(names: tuple[str, ...], package: Path = PACKAGE) -> tuple[str, ...]:
    """The named modules and all that they import, orchestration left out, sorted."""
    seen: set[str] = set()
    todo = [part for name in names for part in _with_packages(name)]
    while todo:
        module = todo.pop()
        if module not in seen and not _left_out(module) and module_file(module, package):
            seen.add(module)
            todo += imports_of(module, package)
    return tuple(sorted(seen))


@lru_cache(maxsize=1024)
def significant(text: str, package: Path = PACKAGE) -> str:
    """What of a module's text can change a result; empty where nothing can."""
    return canonical(text, lambda name: name.split(".")[0] == "persres" and module_file(name, package) is not None)


def digest_modules(modules: tuple[str, ...], package: Path = PACKAGE) -> str:
    """16 hex digits over what modules compute, wherever they lie and whatever they are called."""
    contents = (significant(module_file(module, package).read_text(), package) for module in modules)
    digests = sorted(hashlib.sha256(content.encode()).hexdigest() for content in contents if content)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


@lru_cache
def code_digest(*modules: str) -> str:
    """The digest of the code of modules and of all that they import."""
    return digest_modules(modules_behind(modules))
