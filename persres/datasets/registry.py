"""Datasets by name.

A dataset is a file ``persres/datasets/<name>.py`` and a line in :data:`DATASETS`. The file has ``fetch(settings, folder) -> count``,
which writes the concepts, and ``size(settings) -> (concepts, prompts)``, which counts them before.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from persres.errors import PersresError

DATASETS: dict[str, str | None] = {  # name -> module of its attribute classifier, where it has one
    "miniworld": "persres.miniworld.attribute_classifier",
    "folder": None,
    "customconcept101": None,
    "dreambooth": None,
}
RENDERERS = {"miniworld": "persres.miniworld.ground_truth"}  # name -> module that draws a concept in a prompted scene
CLASSIFIERS = {name: module for name, module in DATASETS.items() if module is not None}


def dataset_named(name: str) -> ModuleType:
    """A dataset's module. Raises PersresError for an unknown name."""
    if name not in DATASETS:
        raise PersresError(f"fetch.dataset: no dataset {name!r}; one of {', '.join(DATASETS)}")
    return import_module(f"persres.datasets.{name}")


def renderer_module(dataset: str) -> ModuleType:
    """A dataset's renderer: ``render_prompt(concept, template, seed)`` returns the right answer to a prompt."""
    return import_module(RENDERERS[dataset])


def classifier_module(dataset: str) -> ModuleType:
    """A dataset's attribute classifier: ``load_attribute_classifier``, ``classify_images`` and ``matches_prompt``."""
    return import_module(CLASSIFIERS[dataset])
