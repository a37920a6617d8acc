"""The tags of a version: whether they are free, published from this commit, or left by a publication that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from persres.errors import PersresError
from persres.versions.git_dvc import git


class Tag(NamedTuple):
    """A tag of this clone: its object, the object's type (``tag`` where it is annotated), and the commit of an annotated one."""

    object: str
    type: str
    commit: str


def is_published(folder: Path, tags: list[str], remote: str | None, there: str | None, clean: bool) -> bool:
    """Whether a version, whose own tag is the first of ``tags``, is published from this commit already; a killed publication has left
    the version unpublished, and some of its tags here. ``there``: the object of its tag in git's ``remote``, None if it has none;
    ``clean``: no file of a run changed since the commit. Raises PersresError if the version is of another commit, or if only the
    remote has it."""
    version, here = tags[0], local_tags(folder, tags)
    if version not in here:
        _check_free(version, remote, there, list(here))
        return False
    if clean and all(_is_of_head(folder, tag) for tag in here.values()):
        if there is None:
            return remote is None and len(here) == len(tags)
        if there == here[version].object:
            return True
    elif remote is not None and there is None:
        raise PersresError(
            f"{version} is a tag of this clone that {remote} lacks, and not of this commit; use another name. If it is left from a publish"
            f" that was killed: git tag -d {' '.join(here)}, then publish"
        )
    raise PersresError(f"{version} exists already, and a version never changes; use another name (persres list)")


def local_tags(folder: Path, names: list[str]) -> dict[str, Tag]:
    """Those of the tags that this clone has, in the order of ``names``."""
    refs = [f"refs/tags/{name}" for name in names]
    lines = git(folder, "for-each-ref", "--format=%(refname)%09%(objectname)%09%(objecttype)%09%(*objectname)", *refs)
    entries = dict(line.split("\t", 1) for line in lines.splitlines())
    return {name: Tag(*entries[ref].split("\t")) for name, ref in zip(names, refs, strict=True) if ref in entries}


def _check_free(version: str, remote: str | None, there: str | None, taken: list[str]) -> None:
    if there is not None:
        raise PersresError(
            f"{remote} has {version} already, and a version never changes; git fetch --tags, then use another name"
        )
    if taken:
        raise PersresError(f"the tag {taken[0]} of {version} exists already; use another name (persres list)")


def _is_of_head(folder: Path, tag: Tag) -> bool:
    """Whether a tag is annotated, as those of ``persres publish`` are, and of the commit that is checked out."""
    return tag.type == "tag" and tag.commit == git(folder, "rev-parse", "HEAD").strip()
