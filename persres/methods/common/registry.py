"""Finds methods by name: every file in ``persres/methods/`` is one, named after the file."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import persres.methods
from persres.config.load import load_params
from persres.config.schema import Base, Profile, SettingsTypes, Train, VariantSettings
from persres.datasets.registry import DATASETS, DRAWN
from persres.errors import PersresError
from persres.methods.common.base import BatchedTraining, Method

DEFAULT = "ours"  # the method of a variant without ``method``: the paper's


def method_names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(persres.methods.__path__) if not module.ispkg)


def method_named(name: str) -> Method:
    """The method with this name. Raises PersresError if there is none."""
    if name not in method_names():
        raise PersresError(f"no method {name!r}; one of {', '.join(method_names())}")
    return import_module(f"persres.methods.{name}").METHOD


def can_train_batched(settings: VariantSettings, base: Base) -> bool:
    """Whether the method of these settings can train several concepts in one batch."""
    method = method_named(settings.method)
    return isinstance(method, BatchedTraining) and method.can_train_batched(settings, base)


class _Types(Mapping[str, type[VariantSettings]]):
    """Settings types by method name; a method's file is imported on first access."""

    def __getitem__(self, name: str) -> type[VariantSettings]:
        if name not in method_names():
            raise KeyError(name)
        return method_named(name).settings

    def __contains__(self, name: object) -> bool:
        return name in method_names()

    def __iter__(self) -> Iterator[str]:
        return iter(method_names())

    def __len__(self) -> int:
        return len(method_names())


def settings_types() -> SettingsTypes:
    """The methods and datasets that a profile may name."""
    return SettingsTypes(_Types(), DEFAULT, frozenset(DATASETS), frozenset(DRAWN))


def load_profile(path: Path = Path("params.yaml"), profile: str | None = None) -> Profile:
    """Load a profile of a settings file. Raises PersresError with all of its problems."""
    return load_params(path, profile, settings_types())


def make_profile(settings: dict) -> Profile:
    """A profile from a mapping, as in the file or from ``model_dump``. Raises pydantic's ValidationError."""
    return Profile.model_validate(settings, context={"types": settings_types()})


def check_available(base: Base, train: Train) -> None:
    """Raises PersresError, before any work, for a variant that the base model's family does not support."""
    from persres.models.base_model import pipeline_name

    family = pipeline_name(base.model)
    for name, settings in train.variants.items():
        unsupported = method_named(settings.method).refuses(settings, family)
        if unsupported is not None:
            raise PersresError(
                f"train.variants.{name}: {unsupported} does not support SDXL models ({base.model}); remove it, or use a"
                " Stable Diffusion 1.x or 2.x model"
            )
