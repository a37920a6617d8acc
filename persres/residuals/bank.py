"""Low-rank residuals ΔW_i = A_i B_i, A_i [m, r], B_i [r, m'], on layers of a U-Net (paper 3.2).

A :class:`ResidualBank` holds the residuals of K concepts stacked, so that one batch may mix concepts; a :class:`Routing` holds each
sample's concept, weight and mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn.functional import pad

from persres.errors import PersresError
from persres.models.attention import check_unfused
from persres.models.call_hooks import CallHooks, innermost
from persres.models.weight_patching import patched_weights
from persres.residuals.lora import Delta
from persres.residuals.parametrisations import PARAMETRISATIONS
from persres.residuals.targets import TargetLayer, find_targets


class ResidualBank(nn.Module):
    """Residuals of K concepts: ``up[i]`` [K, m, r] and ``down[i]`` [K, r, m'], float32. They are A_i and B_i themselves unless
    :meth:`initialise` chose another parametrisation. m' differs from m in keys and values, whose input is the text's width."""

    def __init__(self, targets: list[TargetLayer], concepts: int = 1) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(concepts, t.width, t.rank)) for t in targets)
        self.down = nn.ParameterList(nn.Parameter(torch.zeros(concepts, t.rank, t.width_in)) for t in targets)
        self.parametrisation = PARAMETRISATIONS["scaled_normal"]

    @property
    def concepts(self) -> int:
        """K."""
        return self.up[0].shape[0]

    @torch.no_grad()
    def initialise(self, concept: int, kind: str, gain: float, draw: torch.Generator) -> ResidualBank:
        """Sets one concept's initial values by a key of :data:`PARAMETRISATIONS`, which then holds for the bank; returns the bank."""
        if kind not in PARAMETRISATIONS:
            raise PersresError(f"unknown init {kind!r}; one of {', '.join(PARAMETRISATIONS)}")
        self.parametrisation = PARAMETRISATIONS[kind]
        for target, up, down in zip(self.targets, self.up, self.down, strict=True):
            initial_up, initial_down = self.parametrisation.initial(target, gain, draw)
            up[concept].copy_(initial_up)
            down[concept].copy_(initial_down)
        return self

    def factors(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns A [K, m, r] and B [K, r, m'] of layer ``index``."""
        return self.parametrisation.factors(self.up[index], self.down[index])

    def count(self) -> int:
        """Returns the parameters of one concept: Σ r_i (m_i + m'_i), which is Σ 2 m_i r_i for square layers."""
        return sum(t.rank * (t.width + t.width_in) for t in self.targets)

    @torch.no_grad()
    def scaled(self, strength: float) -> ResidualBank:
        """Multiplies every ΔW by ``strength``, in place; 0 leaves the base model. Returns the bank. For banks of A and B, as files hold."""
        for up in self.up:
            up.mul_(strength)
        return self

    def added(
        self, index: int, x: torch.Tensor, output: torch.Tensor, rows: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns ``output`` + gate ⊗ ΔW x of layer ``index`` for each sample's concept, without forming ΔW.

        ``x`` is [n, m', h, w] for a convolution, [n, tokens, m'] for a linear layer, ``output`` has m for m'; ``rows`` long [n]; ``gate`` float
        [n, pixels] or [n, 1], None is 1. The gate multiplies B x, which is narrow: M ⊗ A(B x) = A(M ⊗ B x). The second product does the sum.
        """
        up, down = (factor.to(x.dtype) for factor in self.factors(index))
        conv = self.targets[index].conv
        if conv and output.is_contiguous():
            up, down = (f.expand(len(x), -1, -1) if len(f) == 1 else f[rows] for f in (up, down))
            return _added_to_planes(up, down, x, output, gate)
        # Pixels as rows: a view of channels-last images. One path for both layouts copies images of the other layout: 2 to 7 times the
        # time of this function at the mini world's sizes, 3 to 4 times at 320 channels and 64×64 pixels (one CPU thread).
        tokens, base = (v.permute(0, 2, 3, 1).flatten(1, 2) if conv else v for v in (x, output))
        if self.concepts == 1:
            low = tokens @ down[0].mT
            low = low if gate is None else low * gate[..., None].to(low.dtype)
            result = torch.addmm(base.flatten(0, 1), low.flatten(0, 1), up[0].mT).view(*base.shape)
        else:
            low = torch.bmm(tokens, down[rows].mT)
            low = low if gate is None else low * gate[..., None].to(low.dtype)
            result = torch.baddbmm(base, low, up[rows].mT)
        return result.unflatten(1, output.shape[2:]).permute(0, 3, 1, 2) if conv else result

    @torch.no_grad()
    def relative_norms(self, unet: nn.Module, concept: int = 0) -> dict[str, float]:
        """Returns ‖ΔW‖ / ‖W‖ (Frobenius) by layer path. ‖AB‖² = Σ (AᵀA)∘(BBᵀ), so ΔW is not formed."""
        norms = {}
        for index, target in enumerate(self.targets):
            a, b = (factor[concept].double() for factor in self.factors(index))
            squared = ((a.T @ a) * (b @ b.T)).sum().clamp(min=0)
            weight = unet.get_submodule(target.path).weight
            norms[target.path] = float(squared.sqrt() / weight.double().norm())
        return norms

    @torch.no_grad()
    def deltas(self, concept: int = 0) -> dict[str, Delta]:
        """Returns copies of one concept's A and B by layer path, on the CPU."""
        deltas = {}
        for index, target in enumerate(self.targets):
            up, down = (factor[concept].cpu().clone() for factor in self.factors(index))
            deltas[target.path] = Delta(up, down[..., None, None] if target.conv else down)
        return deltas

    @classmethod
    @torch.no_grad()
    def from_deltas(cls, unet: nn.Module, deltas: dict[str, Delta], target: str = "proj_out") -> ResidualBank:
        """Returns a bank of one concept at the ranks of ``deltas``, on the U-Net's device, or the CPU's where that is off-loaded.

        Raises PersresError naming the first layer that does not fit the U-Net's targets (a key of :data:`TARGET_MODULES`).
        """
        layers = {layer.path: layer for layer in find_targets(unet, target=target)}
        for path in sorted(layers.keys() ^ deltas.keys()):
            side = "the file" if path in layers else "the model"
            raise PersresError(f"residual is of another architecture: {side} has no layer {path!r}; use the model it was trained on")  # fmt: skip
        for path, layer in layers.items():
            shape = [len(deltas[path].up), deltas[path].down.shape[1]]
            if shape != [layer.width, layer.width_in]:
                raise PersresError(
                    f"residual is of another architecture: {path} is {shape}, the model has {[layer.width, layer.width_in]};"
                    " use the model it was trained on"
                )
        bank = cls([replace(layer, rank=deltas[path].rank) for path, layer in layers.items()])
        for path, up, down in zip(layers, bank.up, bank.down, strict=True):
            up[0].copy_(deltas[path].up)
            down[0].copy_(deltas[path].down.flatten(1))
        device = next(unet.parameters()).device
        return bank if device.type == "meta" else bank.to(device)  # off-loaded weights are on no device until used


def _added_to_planes(
    up: torch.Tensor, down: torch.Tensor, x: torch.Tensor, output: torch.Tensor, gate: torch.Tensor | None
) -> torch.Tensor:
    """:meth:`ResidualBank.added` of a convolution on channels-first images: pixels as columns, which is a view of those. A and B by sample."""
    low = torch.bmm(down, x.flatten(2))
    low = low if gate is None else low * gate[:, None].to(low.dtype)
    return torch.baddbmm(output.flatten(2), up, low).view_as(output)


def stack_banks(banks: list[ResidualBank]) -> ResidualBank:
    """One bank of all concepts of ``banks``. Zeros fill up lower ranks, which changes no ΔW.

    Raises PersresError where the banks have different target layers.
    """
    layers = [[(t.path, t.width, t.width_in, t.conv) for t in bank.targets] for bank in banks]
    if any(other != layers[0] for other in layers):
        raise PersresError(
            "these residuals have different layers; use residuals of one base model and one target module"
        )
    ranks = [max(bank.targets[i].rank for bank in banks) for i in range(len(layers[0]))]
    targets = [replace(target, rank=rank) for target, rank in zip(banks[0].targets, ranks, strict=True)]
    stacked = ResidualBank(targets, sum(bank.concepts for bank in banks))
    with torch.no_grad():
        for i, rank in enumerate(ranks):
            factors = [[factor.cpu() for factor in bank.factors(i)] for bank in banks]
            stacked.up[i].copy_(torch.cat([pad(up, (0, rank - up.shape[2])) for up, _ in factors]))
            stacked.down[i].copy_(torch.cat([pad(down, (0, 0, 0, rank - down.shape[1])) for _, down in factors]))
    return stacked.to(banks[0].up[0].device).requires_grad_(False)


@dataclass
class Routing:
    """Which of K residuals each of n samples takes, how much, and where.

    ``rows`` long [K, n]: rows of the bank. ``weight`` float [n]: 1 applies the residuals, 0 leaves the base model; None is 1 for
    all. ``masks``: filled during LAG, [K, n, pixels] by layer path; where a path is missing the residuals act everywhere.
    """

    rows: torch.Tensor
    weight: torch.Tensor | None
    masks: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def everywhere(cls, n: int, device: torch.device | str = "cpu", concepts: int = 1) -> Routing:
        """All samples take the bank's first ``concepts`` residuals, without masks."""
        rows = torch.arange(concepts, device=device)[:, None].expand(concepts, n)
        return cls(rows, torch.ones(n, device=device))

    def gate(self, path: str, k: int) -> torch.Tensor | None:
        """w · M of a layer and the k-th residual, [n, pixels] or [n, 1]; None is 1."""
        mask = self.masks[path][k] if path in self.masks else None
        if mask is None or self.weight is None:
            return mask if self.weight is None else self.weight[:, None]
        return mask * self.weight[:, None]


@contextmanager
def residual_hooks(unet: nn.Module, bank: ResidualBank, routing: Routing) -> Iterator[None]:
    """Within the context every target layer returns f + w · Σ_k M_k ⊗ ΔW_k x.

    This is the paper's equation 3 for one residual: (1 − M) ⊗ Wx + M ⊗ (W + ΔW)x = Wx + M ⊗ ΔWx. No weight is copied or changed.
    """
    hooks = CallHooks(unet)

    def add(index: int, path: str) -> None:
        def after(_module: nn.Module, args: tuple, _named: dict, output: torch.Tensor) -> torch.Tensor:
            for k, rows in enumerate(routing.rows):
                output = bank.added(index, args[0], output, rows, routing.gate(path, k))
            return output

        hooks.add_after(_layer(unet, bank.targets[index]), after)

    for index, target in enumerate(bank.targets):
        add(index, target.path)
        check_unfused(target.path, unet)
    with hooks:
        yield


def _layer(unet: nn.Module, target: TargetLayer) -> nn.Module:
    """The layer of a target. Raises PersresError for a U-Net that has another one there, or none."""
    try:
        layer = innermost(unet.get_submodule(target.path))
    except AttributeError:
        layer = None
    sizes = ("out_channels", "in_channels") if target.conv else ("out_features", "in_features")
    if [getattr(layer, size, None) for size in sizes] != [target.width, target.width_in]:
        raise PersresError(
            f"the residual does not fit the U-Net's layer {target.path}, which was replaced; load a residual of this model"
        )
    return layer


@contextmanager
def merged_weights(unet: nn.Module, bank: ResidualBank, concept: int = 0) -> Iterator[None]:
    """Replaces W by W + ΔW within the context; the original tensors return on exit."""
    merged = {}
    for index, target in enumerate(bank.targets):
        up, down = (factor[concept].detach() for factor in bank.factors(index))
        weight = unet.get_submodule(target.path).weight.detach()
        merged[f"{target.path}.weight"] = weight.float() + (up @ down).view_as(weight)
    with patched_weights(unet, merged):
        yield
