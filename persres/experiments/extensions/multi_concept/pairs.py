"""CustomConcept101's list of concept pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from persres.datasets.customconcept101 import LISTS_URL
from persres.errors import PersresError


@dataclass(frozen=True)
class Pair:
    """Two concepts of the multi-concept list, their classes, and the prompts with both: ``{1}`` and ``{2}``."""

    names: tuple[str, str]
    classes: tuple[str, str]
    prompts: tuple[str, ...]


def read_pairs(folder: Path) -> list[Pair]:
    """Read the benchmark's 101 pairs (``dataset_multiconcept.json`` next to ``dataset.json``; :data:`persres.datasets.customconcept101.LICENCE` covers it too).

    Skips prompts without both concepts: the list has one that names the first concept twice. Raises PersresError for a missing
    or other list.
    """
    lists = next(
        (p for p in (folder, folder / "customconcept101") if (p / "dataset_multiconcept.json").exists()), folder
    )
    path, pairs = lists / "dataset_multiconcept.json", []
    try:
        for *concepts, composed in json.loads(path.read_text()):
            names = tuple(Path(c["instance_data_dir"]).name for c in concepts)
            classes = tuple(c["class_prompt"] for c in concepts)
            pairs.append(Pair(names, classes, _both(lists / composed["prompt_filename_compose"])))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PersresError(
            f"{path} is not CustomConcept101's list of pairs ({error!r}); copy the repository's folder customconcept101 ({LISTS_URL}) whole"
        ) from error
    return pairs


def _both(path: Path) -> tuple[str, ...]:
    lines = [line.strip().replace("{1}", "{2}").replace("{0}", "{1}") for line in path.read_text().splitlines()]
    return tuple(line for line in lines if "{1}" in line and "{2}" in line)
