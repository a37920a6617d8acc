"""Profiles that extend others: ``extends: mini`` takes every setting that the profile leaves out from ``mini``.

Mappings are merged key by key, at every depth; everything else, lists too, replaces the parent's value. In the mappings whose keys are
the user's names (variants, configs, rows) null removes the parent's entry; elsewhere null is a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persres.errors import PersresError
from persres.untrusted.text import printable, quoted

KEY = "extends"
TABLES = ("table1", "table3", "table4", "table5")
NAMED_BY_USER = {
    ("train", "variants"),
    ("sample", "configs"),
    ("tables", "rows"),
    *(("tables", "rows", t) for t in TABLES),
}


def ancestry(profiles: Mapping[str, Any], name: str, source: object) -> list[str]:
    """The profile, the one that it extends, and so on. Raises PersresError where one is missing, is no mapping, or extends itself."""
    names, settings = [name], profiles[name]
    while isinstance(settings, dict) and KEY in settings:
        parent = settings[KEY]
        where = f"{source}: {quoted(names[-1])}.{KEY}"
        if not isinstance(parent, str) or parent == "profile" or parent not in profiles:
            known = ", ".join(printable(other, 100) for other in profiles if other not in ("profile", *names))
            raise PersresError(f"{where} must name one other profile, not {quoted(parent)}; one of {known or 'none'}")
        if parent in names:
            raise PersresError(f"{where}: {quoted(parent)} extends itself; remove one {KEY} of {', '.join(names)}")
        settings = {} if profiles[parent] is None else profiles[parent]
        if not isinstance(settings, dict):
            raise PersresError(f"{where}: {quoted(parent)} is no mapping of settings; correct it")
        names.append(parent)
    return names


def extended(profiles: Mapping[str, Any], name: str, source: object) -> Any:
    """The settings of a profile over those of the profiles that it extends. ``source``: the file's name in an error.

    Raises PersresError as :func:`ancestry`, and for a null where the parent has nothing to remove.
    """
    names = ancestry(profiles, name, source)
    settings = profiles[names[-1]]
    for child in names[-2::-1]:
        settings = _over(settings or {}, profiles[child], (), f"{source}: {quoted(child)}")
    return {key: value for key, value in settings.items() if key != KEY} if isinstance(settings, dict) else settings


def _over(parent: dict, child: dict, path: tuple, where: str) -> dict:
    """The child's entries in its order, after those that only the parent has. ``path``: the keys that lead to both."""
    entries = {key: value for key, value in parent.items() if key not in child}
    for key, value in child.items():
        inherited = parent.get(key)
        if value is None and path in NAMED_BY_USER:
            if key not in parent:
                line = ".".join(map(str, (*path, key)))
                raise PersresError(f"{where}: {quoted(line)} removes what the extended profile lacks; delete this line")
        elif isinstance(value, dict) and isinstance(inherited, dict):
            entries[key] = _over(inherited, value, (*path, key), where)
        else:
            entries[key] = value
    return entries
