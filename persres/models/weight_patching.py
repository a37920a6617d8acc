"""Other weights in the base model's place, for training and for sampling alike.

A rival's state names what it changed: ``unet.<parameter>`` and ``text_encoder.<parameter>`` stand for the model's own,
``token`` [width] is V*'s embedding. The model itself is shared by all methods in a process and is never written to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from persres.errors import PersresError
from persres.models.diffusion import Diffusion

TOKEN = "token"  # V*'s embedding, among a state's names


def _module(diffusion: Diffusion, name: str) -> tuple[nn.Module, str]:
    """The module that owns a parameter, and the parameter's name in it."""
    part, _, path = name.partition(".")
    owner, _, leaf = path.rpartition(".")
    root = {"unet": diffusion.unet, "text_encoder": diffusion.text_encoder}.get(part)
    try:
        module = root.get_submodule(owner)
        if not isinstance(getattr(module, leaf), nn.Parameter):
            raise AttributeError(leaf)
    except AttributeError as error:
        raise PersresError(f"state is of another architecture: this model has no weight {name!r}") from error
    return module, leaf


def trainable_copies(diffusion: Diffusion, names: list[str], token_id: int) -> dict[str, nn.Parameter]:
    """Trainable float32 copies of the named weights; ``token`` starts as V*'s embedding stands."""
    values = {}
    for name in names:
        if name == TOKEN:
            source = diffusion.text_encoder.get_input_embeddings().weight[token_id]
        else:
            module, leaf = _module(diffusion, name)
            source = getattr(module, leaf)
        values[name] = nn.Parameter(source.detach().float().clone())
    return values


@contextmanager
def patched_token(text_encoder: nn.Module, token_id: int, vector: torch.Tensor) -> Iterator[None]:
    """V*'s embedding is ``vector`` wherever the token stands."""

    def hook(_module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return torch.where((args[0] == token_id)[..., None], vector.to(output), output)

    handle = text_encoder.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def patched_weights(diffusion: Diffusion, values: dict[str, torch.Tensor], token_id: int) -> Iterator[None]:
    """Within the context ``values`` stand in the model's place, gradients and all; on exit the very tensors of before return.

    Raises PersresError where a name or a shape does not fit the model; nothing is changed then.
    """
    places = [(*_module(diffusion, name), value) for name, value in values.items() if name != TOKEN]
    for (module, leaf, value), name in zip(places, (n for n in values if n != TOKEN), strict=True):
        own = getattr(module, leaf)
        if own.shape != value.shape:
            raise PersresError(
                f"state is of another architecture: {name} is {list(value.shape)}, the model has {list(own.shape)}"
            )
    before = [(module, leaf, getattr(module, leaf)) for module, leaf, _ in places]
    with ExitStack() as stack:
        if TOKEN in values:
            stack.enter_context(patched_token(diffusion.text_encoder, token_id, values[TOKEN]))
        try:
            for module, leaf, value in places:
                own = getattr(module, leaf)
                placed = value if isinstance(value, nn.Parameter) else nn.Parameter(value.to(own), requires_grad=False)
                setattr(module, leaf, placed)
            yield
        finally:
            for module, leaf, own in before:
                setattr(module, leaf, own)
