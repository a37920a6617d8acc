"""The tags of a version: whether they are free, published from this commit, or left by a publication that was killed."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path

from persres.errors import PersresError
from persres.versions.git_dvc import git


class TagState(Enum):
    """``FREE``: nobody has the version; ``UNFINISHED``: this clone alone has tags of it, at this commit; ``DONE``: it is published."""

    FREE = auto()
    UNFINISHED = auto()
    DONE = auto()


def state_of(folder: Path, tags: list[str], remote: str | None, there: str | None, clean: bool) -> TagState:
    """The state of a version, whose own tag is the first of ``tags``. ``there``: the object of that tag in git's ``remote``, None if it
    has none; ``clean``: no file of a run changed since the commit. Raises PersresError if the version is of another commit, or if only the remote has it."""
    version, here = tags[0], {tag: local_object(folder, tag) for tag in tags}
    taken = [tag for tag, value in here.items() if value]
    if here[version] is None and there is None:
        if taken:
            raise PersresError(f"the tag {taken[0]} of {version} exists already; use another name (persres list)")
        return TagState.FREE
    if here[version] is None:
        raise PersresError(
            f"{remote} has {version} already, and a version never changes; git fetch --tags, then use another name"
        )
    matches = clean and all(is_of_head(folder, tag) for tag in taken)
    if matches and there is None:
        finished = remote is None and None not in here.values()
        return TagState.DONE if finished else TagState.UNFINISHED
    if matches and there == here[version]:
        return TagState.DONE
    if remote is not None and there is None:
        raise PersresError(
            f"{version} is a tag of this clone that {remote} lacks, and not of this commit; use another name. If it is left from a publish"
            f" that was killed: git tag -d {' '.join(taken)}, then publish"
        )
    raise PersresError(f"{version} exists already, and a version never changes; use another name (persres list)")


def local_object(folder: Path, tag: str) -> str | None:
    """The object of this clone's tag, None if there is no such tag."""
    return git(folder, "for-each-ref", "--format=%(objectname)", f"refs/tags/{tag}").strip() or None


def is_of_head(folder: Path, tag: str) -> bool:
    """Whether a tag is annotated, as those of ``persres publish`` are, and of the commit that is checked out."""
    kind, _, commit = (
        git(folder, "for-each-ref", "--format=%(objecttype) %(*objectname)", f"refs/tags/{tag}").strip().partition(" ")
    )
    return kind == "tag" and commit == git(folder, "rev-parse", "HEAD").strip()
