"""Forward hooks that act in one call only, whoever else uses the modules.

A hook of torch belongs to its module: every thread and every pipeline that shares the module runs it. Here a module gets one hook that
runs the functions of the current context (:mod:`contextvars`), so a call in another thread, or of another pipeline, never meets them.
No weight, module or attention processor is replaced: a layer that peft or accelerate wraps, before or after, keeps working.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

Before = Callable[[nn.Module, tuple, dict], "tuple[tuple, dict] | None"]
After = Callable[[nn.Module, tuple, dict, Any], Any]


class CallHooks:
    """Functions to run before and after modules of ``root``, within ``with hooks:`` and only in that context.

    ``before`` functions take (module, args, kwargs) and return new (args, kwargs) or None; ``after`` functions take (module, args, kwargs,
    output) and return another output or None; ``heads`` functions take an attention's (query, key, scale, bias).
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.before: dict[nn.Module, list[Before]] = {}
        self.after: dict[nn.Module, list[After]] = {}
        self.heads: dict[nn.Module, list[Callable[..., None]]] = {}
        self._tokens: list[Token] = []

    def add_before(self, module: nn.Module, run: Before) -> None:
        """Run ``run`` before each forward pass of ``module``."""
        self.before.setdefault(module, []).append(run)

    def add_after(self, module: nn.Module, run: After) -> None:
        """Run ``run`` after each forward pass of ``module``."""
        self.after.setdefault(module, []).append(run)

    def add_heads(self, attention: nn.Module, run: Callable[..., None]) -> None:
        """Give ``run`` the heads of each pass of ``attention``; see :func:`persres.models.attention.watch_heads`."""
        self.heads.setdefault(attention, []).append(run)

    def modules(self) -> set[nn.Module]:
        """The modules with functions."""
        return set(self.before) | set(self.after)

    def __enter__(self) -> CallHooks:
        _install(self.root, self.modules())
        self._tokens.append(_active.set((*_active.get(), self)))
        return self

    def __exit__(self, *error: object) -> None:
        _active.reset(self._tokens.pop())
        if not is_compiled(self.root):  # a compiled graph holds its hooks
            _release(self.modules())


_active: ContextVar[tuple[CallHooks, ...]] = ContextVar("persres_call_hooks", default=())
_counts: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # calls in progress that hook a module
_handles: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()
_lock = threading.Lock()


class OutsideCalls:
    """A context without the functions of the calls around it: a callback of one call may make another."""

    def __enter__(self) -> None:
        self._token = _active.set(())

    def __exit__(self, *error: object) -> None:
        _active.reset(self._token)


def watching_heads(attention: nn.Module) -> list[Callable[..., None]]:
    """The ``heads`` functions of an attention in this context."""
    return [run for hooks in _active.get() for run in hooks.heads.get(attention, ())]


def innermost(layer: nn.Module) -> nn.Module:
    """The layer itself, under any that wrap it as peft's do."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` wraps."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` or ``Module.compile`` was called on a model or on a part of it."""
    return model is not unwrapped(model) or any(m._compiled_call_impl is not None for m in model.modules())


def _install(root: nn.Module, modules: set[nn.Module]) -> None:
    with _lock:
        new = [module for module in modules if not _has_hooks(module)]
        for module in new:
            before = module.register_forward_pre_hook(_run_before, with_kwargs=True)
            _handles[module] = [before, module.register_forward_hook(_run_after, with_kwargs=True)]
        for module in modules:
            _counts[module] = _counts.get(module, 0) + 1
    if new and is_compiled(root):
        torch.compiler.reset()  # its guards do not see new hooks: a graph from before would leave them out


def _has_hooks(module: nn.Module) -> bool:
    """Also of a deep copy, which has the hooks of its original."""
    return _run_before in module._forward_pre_hooks.values()


def _release(modules: set[nn.Module]) -> None:
    with _lock:
        for module in modules:
            _counts[module] -= 1
            if not _counts[module]:
                del _counts[module]
                for handle in _handles.pop(module, ()):
                    handle.remove()


@torch.compiler.disable
def _run_before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    for hooks in _active.get():
        for run in hooks.before.get(module, ()):
            args, kwargs = run(module, args, kwargs) or (args, kwargs)
    return args, kwargs


@torch.compiler.disable
def _run_after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    for hooks in _active.get():
        for run in hooks.after.get(module, ()):
            result = run(module, args, kwargs, output)
            output = output if result is None else result
    return output
