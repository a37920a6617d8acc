"""Datasets by name: a file in ``persres/datasets/`` named in :data:`DATASETS`, with ``fetch`` and ``size``, is one.

``fetch(settings, folder) -> count`` writes the concepts, ``size(settings) -> (concepts, prompts)`` counts them before. A dataset
whose pictures a judge can read names the judge's module in :data:`JUDGES`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from persres.errors import PersresError

DATASETS = ("miniworld", "folder", "customconcept101", "dreambooth")
CLASSIFIERS = {"miniworld": "persres.miniworld.attribute_classifier"}


def dataset_named(name: str) -> ModuleType:
    """A dataset's module. Raises PersresError for an unknown name."""
    if name not in DATASETS:
        raise PersresError(f"fetch.dataset: no dataset {name!r}; one of {', '.join(DATASETS)}")
    return import_module(f"persres.datasets.{name}")


def datasets_with_classifier() -> frozenset[str]:
    """Those whose pictures a judge can read."""
    return frozenset(CLASSIFIERS)


def classifier_module(dataset: str) -> ModuleType:
    """The judge of a dataset: ``load_judge``, ``judge_images`` and ``followed``."""
    return import_module(CLASSIFIERS[dataset])
