"""Low-rank residuals on the output projections of a U-Net's transformer blocks (paper 3.2).

For block i, ΔW_i = A_i B_i with A_i [m, r], B_i [r, m] and r = max(1, round(0.05 m)). A
:class:`ResidualBank` holds the residuals of K concepts stacked, so that one batch may mix
concepts; a :class:`Routing` says which sample takes which concept, and where.

The paper says that both factors are "randomly initialized" and gives no scale. The default,
``scaled_normal``, draws B ~ N(0, 1/m), so that B x is of x's size, and A ~ N(0, gain²/r), so that
ΔW x starts at ``gain`` times the size of x whatever the width and rank. At gain 0.01 the model
starts where the base model stands: unit-variance factors start from noise and must first unlearn it,
a zero factor (LoRA's way, ``lora``) is not what the paper describes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from persres.errors import PersresError
from persres.models.weight_patching import patched_weights

TARGET_MODULES = ("proj_out", "proj_in", "attn_kv")


@dataclass(frozen=True)
class TargetLayer:
    """One layer that takes a residual: ``width`` outputs, ``width_in`` inputs. ``conv`` tells a 1×1 convolution from a
    linear layer."""

    path: str
    width: int
    conv: bool
    rank: int
    width_in: int


def rank_of(width: int, ratio: float = 0.05, fixed: int | None = None) -> int:
    """r = max(1, round(ratio · m)) (paper 4.1), or a fixed rank, at most the width (paper table 5)."""
    return min(width, fixed if fixed is not None else max(1, round(ratio * width)))


def _layers(path: str, block: Transformer2DModel, place: str) -> Iterator[tuple[str, nn.Module]]:
    if place == "attn_kv":
        for number, layer in enumerate(block.transformer_blocks):
            for name in ("to_k", "to_v"):
                yield f"{path}.transformer_blocks.{number}.attn2.{name}", getattr(layer.attn2, name)
    elif place in TARGET_MODULES:
        yield f"{path}.{place}", getattr(block, place)
    else:
        raise PersresError(f"unknown target {place!r}; one of {', '.join(TARGET_MODULES)}")


def find_targets(
    unet: nn.Module, ratio: float = 0.05, fixed_rank: int | None = None, place: str = "proj_out"
) -> list[TargetLayer]:
    """The layers that take a residual, in the order of the model's modules: the output projection of every
    transformer block; or, for the paper's ablations, its input projection, or keys and values of its cross-attention.

    Raises PersresError where the model has none.
    """
    targets = []
    for path, block in unet.named_modules():
        if isinstance(block, Transformer2DModel):
            for name, layer in _layers(path, block, place):
                width, width_in = layer.weight.shape[:2]
                rank = min(rank_of(width, ratio, fixed_rank), width_in)
                targets.append(TargetLayer(name, width, isinstance(layer, nn.Conv2d), rank, width_in))
    if not targets:
        raise PersresError(
            f"{type(unet).__name__} has no transformer block with an output projection; is this a Stable Diffusion U-Net?"
        )
    return targets


class ResidualBank(nn.Module):
    """Residuals of K concepts: ``up[i]`` is A_i [K, m, r] and ``down[i]`` is B_i [K, r, m'], float32; m' = m but for keys
    and values, which read the text's width."""

    def __init__(self, targets: list[TargetLayer], concepts: int = 1) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(concepts, t.width, t.rank)) for t in targets)
        self.down = nn.ParameterList(nn.Parameter(torch.zeros(concepts, t.rank, t.width_in)) for t in targets)

    @property
    def concepts(self) -> int:
        """K."""
        return self.up[0].shape[0]

    @torch.no_grad()
    def initialise(self, concept: int, kind: str, gain: float, draw: torch.Generator) -> ResidualBank:
        """Draw one concept's factors; see the module's docstring for ``scaled_normal``.

        ``normal``: both N(0, gain²). ``lora``: A = 0, B ~ U(±1/√m), as LoRA starts.
        """
        for target, up, down in zip(self.targets, self.up, self.down, strict=True):
            a = torch.randn(up.shape[1:], generator=draw)
            b = torch.randn(down.shape[1:], generator=draw)
            if kind == "scaled_normal":
                a, b = a * gain / math.sqrt(target.rank), b / math.sqrt(target.width_in)
            elif kind == "normal":
                a, b = a * gain, b * gain
            elif kind == "lora":
                a, b = a * 0, (torch.rand(down.shape[1:], generator=draw) * 2 - 1) / math.sqrt(target.width_in)
            else:
                raise PersresError(f"unknown init {kind!r}; one of scaled_normal, normal, lora")
            up[concept].copy_(a)
            down[concept].copy_(b)
        return self

    def count(self) -> int:
        """Numbers per concept: Σ r_i (m_i + m'_i), which is Σ 2 m_i r_i for square layers."""
        return sum(t.rank * (t.width + t.width_in) for t in self.targets)

    @torch.no_grad()
    def scaled(self, strength: float) -> ResidualBank:
        """In place: ``strength`` · ΔW for every concept; 0 leaves the base model. Returns the bank."""
        for up in self.up:
            up.mul_(strength)
        return self

    def product(self, index: int, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """ΔW x of layer ``index`` for each sample's own concept, without forming ΔW.

        ``x`` is [n, m, h, w] for a convolution, [n, tokens, m] for a linear layer; ``rows`` long [n].
        """
        return self.added(index, x, x.new_zeros(()).expand(self._shape(index, x)), rows)

    def added(
        self, index: int, x: torch.Tensor, output: torch.Tensor, rows: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``output`` + gate ⊗ ΔW x of layer ``index``, shapes as in :meth:`product`. ``gate`` float [n, pixels] or [n, 1]; none is 1.

        The gate is put on B x, which is narrow: M ⊗ A(B x) = A(M ⊗ B x). The sum is the second product's own.
        """
        conv, up, down = self.targets[index].conv, self.up[index].to(x.dtype), self.down[index].to(x.dtype)
        if conv and output.is_contiguous():
            return _added_to_planes(up, down, x, output, rows, gate)
        # pixels as rows: of what lies channels last this is a view
        tokens, base = (v.permute(0, 2, 3, 1).flatten(1, 2) if conv else v for v in (x, output))
        if self.concepts == 1:
            low = tokens @ down[0].mT
            low = low if gate is None else low * gate[..., None].to(low.dtype)
            found = torch.addmm(base.flatten(0, 1), low.flatten(0, 1), up[0].mT).view(*base.shape)
        else:
            low = torch.bmm(tokens, down[rows].mT)
            low = low if gate is None else low * gate[..., None].to(low.dtype)
            found = torch.baddbmm(base, low, up[rows].mT)
        return found.unflatten(1, output.shape[2:]).permute(0, 3, 1, 2) if conv else found

    def _shape(self, index: int, x: torch.Tensor) -> tuple[int, ...]:
        width = self.targets[index].width
        return (len(x), width, *x.shape[2:]) if self.targets[index].conv else (*x.shape[:-1], width)

    @torch.no_grad()
    def relative_norms(self, unet: nn.Module, concept: int = 0) -> dict[str, float]:
        """‖ΔW‖ / ‖W‖ (Frobenius) by layer path; ‖AB‖² = Σ (AᵀA)∘(BBᵀ), so ΔW is not formed."""
        norms = {}
        for target, up, down in zip(self.targets, self.up, self.down, strict=True):
            a, b = up[concept].double(), down[concept].double()
            squared = ((a.T @ a) * (b @ b.T)).sum().clamp(min=0)
            weight = unet.get_submodule(target.path).weight
            norms[target.path] = float(squared.sqrt() / weight.double().norm())
        return norms

    def to_state(self, concept: int = 0) -> dict[str, torch.Tensor]:
        """One concept's factors by layer: ``<path>.up`` [m, r] and ``<path>.down`` [r, m]."""
        state = {}
        for target, up, down in zip(self.targets, self.up, self.down, strict=True):
            state[f"{target.path}.up"] = up[concept].detach().cpu().clone()
            state[f"{target.path}.down"] = down[concept].detach().cpu().clone()
        return state

    @classmethod
    def from_states(cls, targets: list[TargetLayer], states: list[dict[str, torch.Tensor]]) -> ResidualBank:
        """A bank of several concepts. Raises PersresError naming the first layer that does not fit."""
        bank = cls(targets, len(states))
        for concept, state in enumerate(states):
            wanted = {f"{t.path}.{part}" for t in targets for part in ("up", "down")}
            if set(state) != wanted:
                odd = sorted(set(state) ^ wanted)[0]
                raise PersresError(
                    f"residual is of another architecture: layer {odd!r} is on one side only; use the model it was trained on"
                )
            with torch.no_grad():
                for i, target in enumerate(targets):
                    for part, stack in (("up", bank.up), ("down", bank.down)):
                        value = state[f"{target.path}.{part}"]
                        if value.shape != stack[i].shape[1:]:
                            raise PersresError(
                                f"residual is of another architecture or rank: {target.path}.{part} is {list(value.shape)},"
                                f" the model needs {list(stack[i].shape[1:])}; use the model and rank it was trained with"
                            )
                        stack[i][concept].copy_(value)
        return bank


def _added_to_planes(
    up: torch.Tensor,
    down: torch.Tensor,
    x: torch.Tensor,
    output: torch.Tensor,
    rows: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    """:meth:`ResidualBank.added` of a convolution whose pictures lie channels first: pixels as columns, which is a view of those."""
    up, down = (f[:1].expand(len(x), -1, -1) if len(f) == 1 else f[rows] for f in (up, down))
    low = torch.bmm(down, x.flatten(2))
    low = low if gate is None else low * gate[:, None].to(low.dtype)
    return torch.baddbmm(output.flatten(2), up, low).view_as(output)


@dataclass
class Routing:
    """For each sample of a batch: which concept, how much, and where.

    ``rows`` long [n]: index into the bank. ``weight`` float [n]: 1 applies the residual, 0 leaves
    the base model; None is 1 for all. ``masks``: filled during LAG sampling, one [n, pixels] mask per layer path;
    where a path is missing the residual applies everywhere.
    """

    rows: torch.Tensor
    weight: torch.Tensor | None
    masks: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def everywhere(cls, n: int, device: torch.device | str = "cpu") -> Routing:
        """All samples take concept 0, all over the picture."""
        return cls(torch.zeros(n, dtype=torch.long, device=device), torch.ones(n, device=device))


def gate_of(weight: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor | None:
    """w·M of each sample, [n, pixels] or [n, 1], of ``weight`` float [n] and ``mask`` [n, pixels]; none of them is 1."""
    if mask is None:
        return None if weight is None else weight[:, None]
    return mask if weight is None else mask * weight[:, None]


@contextmanager
def residual_hooks(unet: nn.Module, bank: ResidualBank, routing: Routing) -> Iterator[None]:
    """Within the context every target layer gives f + w·M ⊗ ΔW x (paper equation 3, rearranged:
    (1−M)⊗Wx + M⊗(W+ΔW)x = Wx + M⊗ΔWx). No weight is copied or changed; hooks go on exit."""
    handles = []

    def hook_for(index: int, target: TargetLayer):
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            gate = gate_of(routing.weight, routing.masks.get(target.path))
            return bank.added(index, args[0], output, routing.rows, gate)

        return hook

    try:
        for index, target in enumerate(bank.targets):
            handles.append(unet.get_submodule(target.path).register_forward_hook(hook_for(index, target)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def merged_weights(unet: nn.Module, bank: ResidualBank, concept: int = 0) -> Iterator[None]:
    """Replaces W by W + ΔW within the context; the original tensors return on exit."""
    merged = {}
    for target, up, down in zip(bank.targets, bank.up, bank.down, strict=True):
        weight = unet.get_submodule(target.path).weight.detach()
        merged[f"{target.path}.weight"] = weight.float() + (up[concept] @ down[concept]).detach().view_as(weight)
    with patched_weights(unet, merged):
        yield
