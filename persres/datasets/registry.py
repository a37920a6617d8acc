"""Datasets by name.

A dataset is a file ``persres/datasets/<name>.py`` and a line in :data:`DATASETS`. The file has ``fetch(settings, folder) -> count``,
which writes the concepts, and ``size(settings) -> (concepts, prompts)``, which counts them before.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from persres.errors import PersresError


@dataclass(frozen=True)
class Drawn:
    """Modules of a dataset that is drawn by code, which knows what it shows.

    ``classifier``: ``load_attribute_classifier``, ``classify_images`` and ``matches_prompt``. ``renderer``:
    ``render_prompt(concept, template, seed)``, the right answer to a prompt.
    """

    classifier: str
    renderer: str


DATASETS: dict[str, Drawn | None] = {
    "miniworld": Drawn("persres.miniworld.attribute_classifier", "persres.miniworld.ground_truth"),
    "folder": None,
    "customconcept101": None,
    "dreambooth": None,
}
DRAWN = {name: modules for name, modules in DATASETS.items() if modules is not None}


def dataset_named(name: str) -> ModuleType:
    """A dataset's module. Raises PersresError for an unknown name."""
    if name not in DATASETS:
        raise PersresError(f"fetch.dataset: no dataset {name!r}; one of {', '.join(DATASETS)}")
    return import_module(f"persres.datasets.{name}")


def renderer_module(dataset: str) -> ModuleType:
    """A dataset's renderer."""
    return import_module(DRAWN[dataset].renderer)


def classifier_module(dataset: str) -> ModuleType:
    """A dataset's attribute classifier."""
    return import_module(DRAWN[dataset].classifier)
