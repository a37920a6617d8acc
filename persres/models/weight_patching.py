"""Temporarily replaced weights, for training and for sampling alike.

A name is a parameter's path from the model: ``unet.conv_in.weight`` in a :class:`~persres.models.diffusion.Diffusion` or a diffusers
pipeline, ``conv_in.weight`` in a U-Net. ``token`` [width] stands for V*'s embedding. All methods of a process share the model, so no
weight is ever written to: the context puts other tensors in place, and takes them out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import nn

from persres.errors import PersresError

TOKEN = "token"  # V*'s embedding, among the names of a state


def _parameter(model: Any, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name in it."""
    *path, leaf = name.split(".")
    try:
        module = reduce(getattr, path, model)
        if not isinstance(getattr(module, leaf), nn.Parameter):
            raise AttributeError(leaf)
    except AttributeError as error:
        raise PersresError(f"state is of another architecture: this model has no weight {name!r}") from error
    return module, leaf


def trainable_copies(model: Any, names: list[str], token_id: int) -> dict[str, nn.Parameter]:
    """Returns trainable float32 copies of the named weights; ``token`` starts as V*'s present embedding."""
    values = {}
    for name in names:
        if name == TOKEN:
            source = model.text_encoder.get_input_embeddings().weight[token_id]
        else:
            module, leaf = _parameter(model, name)
            source = getattr(module, leaf)
        values[name] = nn.Parameter(source.detach().float().clone())
    return values


@contextmanager
def patched_weights(model: Any, values: Mapping[str, torch.Tensor], token_id: int | None = None) -> Iterator[None]:
    """Replaces the named parameters within the context; the original tensors return on exit, also after an error.

    An ``nn.Parameter`` is put in place itself, so gradients reach it. Any other tensor takes the original's device and dtype. ``token``
    replaces the embedding of ``token_id`` in the text encoder; every other embedding stays a row of the original table.

    Raises PersresError where a name or a shape does not fit the model; nothing is changed then.
    """
    targets = {name: _parameter(model, name) for name in values if name != TOKEN}
    originals = {name: getattr(module, leaf) for name, (module, leaf) in targets.items()}
    for name, original in originals.items():
        if original.shape != values[name].shape:
            raise PersresError(
                f"state is of another architecture: {name} is {list(values[name].shape)}, the model has {list(original.shape)}"
            )
    if TOKEN in values:
        _check_token(model.text_encoder, values[TOKEN])
    handle = _patch_token(model.text_encoder, token_id, values[TOKEN]) if TOKEN in values else None
    try:
        for name, (module, leaf) in targets.items():
            value = values[name]
            if not isinstance(value, nn.Parameter):
                value = nn.Parameter(value.to(originals[name]), requires_grad=False)
            setattr(module, leaf, value)
        yield
    finally:
        for name, (module, leaf) in targets.items():
            setattr(module, leaf, originals[name])
        if handle is not None:
            handle.remove()


def _check_token(text_encoder: nn.Module, vector: torch.Tensor) -> None:
    width = text_encoder.get_input_embeddings().embedding_dim
    if vector.shape != (width,):
        raise PersresError(f"state is of another architecture: its V* is {list(vector.shape)}, the model has [{width}]")


def _patch_token(text_encoder: nn.Module, token_id: int, vector: torch.Tensor) -> torch.utils.hooks.RemovableHandle:
    """Puts ``vector`` wherever the token stands. A hook, because a new table a step would take a gradient as large as the table."""

    def hook(_module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return torch.where((args[0] == token_id)[..., None], vector.to(output), output)

    return text_encoder.get_input_embeddings().register_forward_hook(hook)
