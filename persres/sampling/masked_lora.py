"""LAG for any LoRA: every delta of the U-Net acts only where the subject's cross-attention is (paper 3.3 covers output projections).

The masks are LAG's (:class:`persres.sampling.lag.MaskRule`), at each layer's size, without a further U-Net pass:

- layers over space (convolutions, queries and outputs of attention, feed-forward, projections): W x + M ⊗ ΔW x;
- keys and values have a row for each token or pixel, not for each query. Both attentions are computed and blended per query:
  (1 − M) ⊗ Attn(Q, K, V) + M ⊗ Attn(Q, K + ΔK, V + ΔV). Outside the mask a query reads the base model's keys and values;
- a ResNet block's time projection shifts its channels everywhere. The shift is masked after it is broadcast over space;
- layers without pixels (embeddings of time and size) take the whole delta, as the text towers do.

The maps come from the base model's keys, so the LoRA's keys cannot move its mask. A layer before its block's cross-attention takes the
maps of the previous step, or, under a shared map, of the preceding blocks in this step. A layer outside all transformer blocks takes the
shared map, or the blend of all blocks. In the first step no map exists before the first cross-attention, and no delta acts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from persres.models.attention import check_unfused, watch_heads
from persres.models.call_hooks import CallHooks, innermost, unwrapped
from persres.residuals.bank import Routing
from persres.residuals.lora import Delta
from persres.sampling.lag import MaskRule, check_plain, size_of, transformer_blocks
from persres.sampling.mask_config import blended, resized

Shape = tuple[int, int]


class Product:
    """ΔW x of one layer without forming ΔW, in the precision and on the device of x."""

    def __init__(self, layer: nn.Module, delta: Delta, strength: float = 1.0) -> None:
        self.layer, self.up, self.down = layer, delta.up * strength, delta.down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The delta of the layer's output for its input x."""
        if self.up.device != x.device or self.up.dtype != x.dtype:
            self.up, self.down = self.up.to(x), self.down.to(x)
        if isinstance(self.layer, nn.Conv2d):
            layer = self.layer
            low = F.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
            return F.conv2d(low, self.up[..., None, None])
        return F.linear(F.linear(x, self.down), self.up)


class LayerMasks:
    """Masks [samples, pixels] times each sample's weight, for every layer of the current pass.

    Without a rule the deltas act everywhere. ``shape``: each transformer block's height and width in this pass.
    """

    def __init__(self, routing: Routing, rule: MaskRule | None) -> None:
        self.routing, self.rule = routing, rule
        self.shape: dict[str, Shape] = {}
        self.newest: dict[str, torch.Tensor] = {}  # block -> its newest map [n, h, w]
        self.layer_maps: dict[str, list[torch.Tensor]] = {}  # block -> maps of its layers in this pass
        self.gates: dict[tuple[str | None, Shape], torch.Tensor] = {}  # valid until the next map
        self.query_gates: dict[nn.Module, torch.Tensor] = {}  # attention -> the gate of its queries in this pass

    def weight(self, like: torch.Tensor) -> torch.Tensor:
        """Each sample's weight, [n, 1, …] as ``like``."""
        return self.routing.weight.to(like).view(-1, *[1] * (like.ndim - 1))

    def gate(self, block: str | None, shape: Shape) -> torch.Tensor:
        """Mask times weight, [n, pixels]; [n, 1] without a rule."""
        if self.rule is None:
            return self.routing.weight[:, None]
        key = (None if self.rule.mask_config.shared and self.rule.newest else block, shape)
        if key not in self.gates:
            self.gates[key] = self._mask(block, shape) * self.routing.weight[:, None]
        return self.gates[key]

    def enter_attention(self, attn: nn.Module, *_: object) -> None:
        """Start an attention's pass."""
        self.query_gates.pop(attn, None)

    def query_gate(self, attn: nn.Module, block: str) -> torch.Tensor:
        """The gate of an attention's queries, which make its map: the one from before the map, however often they are computed."""
        if attn not in self.query_gates:
            self.query_gates[attn] = self.gate(block, self.shape[block])
        return self.query_gates[attn]

    def _mask(self, block: str | None, shape: Shape) -> torch.Tensor:
        rule, maps = self.rule, None
        if block in self.newest:
            maps = resized(self.newest[block], shape)
        elif self.newest:
            maps = blended(list(self.newest.values()), None, shape).unflatten(1, shape)
        if maps is None and not (rule.mask_config.shared and rule.newest):
            return rule.everywhere[:, None].float().expand(-1, shape[0] * shape[1])
        return rule.mask_at(shape, maps)[0]

    def enter(self, block: str, shape: Shape) -> None:
        """Start a block of this height and width."""
        self.shape[block], self.layer_maps[block] = shape, []

    def add_map(self, block: str, attention: torch.Tensor) -> None:
        """Add one layer's map, [n, pixels]; the block's map is the mean of its layers so far."""
        self.layer_maps[block].append(attention)
        self.newest[block] = torch.stack(self.layer_maps[block]).mean(0).unflatten(1, self.shape[block])
        self.gates.clear()

    def finish(self, block: str) -> None:
        """Give the block's complete map to the rule."""
        self.rule.finish(f"{block}.proj_out", torch.stack(self.layer_maps[block]).mean(0), self.shape[block])
        self.newest[block] = self.rule.smoothed.get(block, self.newest[block])
        self.gates.clear()


class BlendedAttention:
    """Attention with the base model's keys and values, and with the LoRA's inside the mask: the layer runs twice, by its processor."""

    def __init__(self, masks: LayerMasks, block: str) -> None:
        self.masks, self.block, self.with_lora = masks, block, False

    def add(self, hooks: CallHooks, attn: Attention, deltas: dict[str, Product]) -> None:
        """Blend an attention whose ``to_k`` or ``to_v`` has a delta, by these names."""

        def changed(product: Product) -> Callable:
            def after(_module: nn.Module, args: tuple, _named: dict, output: torch.Tensor) -> torch.Tensor | None:
                return output + product(args[0]) if self.with_lora else None

            return after

        def blended_pass(module: Attention, args: tuple, named: dict, base: torch.Tensor) -> torch.Tensor:
            self.with_lora = True
            try:
                lora = module.forward(*args, **named)
            finally:
                self.with_lora = False
            gate = self.masks.gate(self.block, self.masks.shape[self.block])[..., None].to(base.dtype)
            return base + gate * (lora - base)

        for name, product in deltas.items():
            hooks.add_after(innermost(getattr(attn, name)), changed(product))
        hooks.add_after(attn, blended_pass)


@contextmanager
def masked_lora_hooks(
    unet: nn.Module, deltas: dict[str, Delta], routing: Routing, rule: MaskRule | None, strength: float = 1.0
) -> Iterator[None]:
    """Within the context the LoRA's deltas act inside the rule's masks, times each sample's ``routing.weight``.

    Without a rule they act everywhere. No weight and no attention processor is changed.
    """
    masks, hooks, blocks = LayerMasks(routing, rule), CallHooks(unet), transformer_blocks(unet)
    products = {path: Product(innermost(unet.get_submodule(path)), delta, strength) for path, delta in deltas.items()}
    if rule is not None:
        hooks.add_before(unwrapped(unet), lambda *_: masks.gates.clear())
        for path, block in blocks.items():
            _watch(path, block, hooks, masks, products)
    for path, product in products.items():
        check_unfused(path, unet)
        block = next((b for b in blocks if path.startswith(f"{b}.")), None)
        _act(path, product, unet.get_submodule(path.rpartition(".")[0]), block, hooks, masks)
    with hooks:
        yield


def _watch(
    path: str, module: Transformer2DModel, hooks: CallHooks, masks: LayerMasks, products: dict[str, Product]
) -> None:
    """Read the maps of a block's cross-attentions; blend the attentions whose keys or values have deltas."""

    def add_map(*parts: torch.Tensor) -> None:
        if not blending.with_lora:  # the maps are the base model's
            masks.add_map(path, masks.rule.concept_attention(*parts))

    blending = BlendedAttention(masks, path)
    hooks.add_before(module, lambda _m, args, named: masks.enter(path, size_of(args, named)))
    for number, block in enumerate(module.transformer_blocks):
        for name, layer in (("attn1", block.attn1), ("attn2", block.attn2)):
            prefix = f"{path}.transformer_blocks.{number}.{name}"
            pair = {part: products[f"{prefix}.{part}"] for part in ("to_k", "to_v") if f"{prefix}.{part}" in products}
            if name == "attn2" or pair:
                check_plain(path, layer)
            hooks.add_before(layer, masks.enter_attention)
            if name == "attn2":
                watch_heads(hooks, layer, add_map)
            if pair:
                blending.add(hooks, layer, pair)
    hooks.add_before(innermost(module.proj_out), lambda *_: masks.finish(path))


def _act(
    path: str, product: Product, parent: nn.Module, block: str | None, hooks: CallHooks, masks: LayerMasks
) -> None:
    """Add one layer's delta."""
    layer, leaf = product.layer, path.rpartition(".")[2]
    if masks.rule is None:
        hooks.add_after(layer, _added(product, masks.weight))
    elif isinstance(parent, Attention) and leaf in ("to_k", "to_v"):
        pass  # see BlendedAttention
    elif isinstance(parent, Attention) and leaf == "to_q":
        hooks.add_after(layer, _added(product, lambda y: masks.query_gate(parent, block)[..., None].to(y.dtype)))
    elif isinstance(layer, nn.Conv2d):
        hooks.add_after(layer, _added(product, lambda y: _over_pixels(masks.gate(block, tuple(y.shape[-2:])), y)))
    elif block is not None:
        hooks.add_after(layer, _added(product, lambda y: masks.gate(block, masks.shape[block])[..., None].to(y.dtype)))
    elif isinstance(parent, ResnetBlock2D) and parent.time_embedding_norm == "default":
        _shift(product, parent, hooks, masks)
    else:
        hooks.add_after(layer, _added(product, masks.weight))


def _over_pixels(gate: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return gate.to(like.dtype).view(len(gate), 1, *like.shape[-2:])


def _added(product: Product, gate: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def after(_module: nn.Module, args: tuple, _named: dict, output: torch.Tensor) -> torch.Tensor:
        return output + gate(output) * product(args[0])

    return after


def _shift(product: Product, parent: ResnetBlock2D, hooks: CallHooks, masks: LayerMasks) -> None:
    """Functions for a ResNet block, which adds the projected time to every pixel before its second norm: the delta joins it there."""
    shift: list[torch.Tensor] = []

    def projected(_module: nn.Module, args: tuple, _named: dict, _output: torch.Tensor) -> None:
        shift[:] = [product(args[0])[:, :, None, None]]

    def before_norm(_module: nn.Module, args: tuple, named: dict) -> tuple[tuple, dict]:
        gate = _over_pixels(masks.gate(None, tuple(args[0].shape[2:])), args[0])
        return (args[0] + gate * shift[0],), named

    hooks.add_after(product.layer, projected)
    hooks.add_before(parent.norm2, before_norm)


@contextmanager
def text_encoder_lora(
    towers: list[nn.Module | None], deltas: tuple[dict[str, Delta], ...], strength: float = 1.0
) -> Iterator[None]:
    """Within the context the deltas of the text towers act, times ``strength``: text has no pixels to mask."""
    with ExitStack() as stack:
        for tower, layers in zip(towers, deltas, strict=False):
            if not layers:
                continue
            hooks = CallHooks(tower)
            for path, delta in layers.items():
                layer = innermost(tower.get_submodule(path))
                hooks.add_after(layer, _added(Product(layer, delta, strength), lambda _y: 1.0))
            stack.enter_context(hooks)
        yield
