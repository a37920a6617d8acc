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

from persres.models.attention import CachedTextAttnProcessor, attended, split_heads
from persres.models.weight_patching import patched_weights
from persres.residuals.bank import Routing
from persres.residuals.lora import Delta
from persres.sampling.lag import MaskRule, check_plain
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


class BlendedAttnProcessor(CachedTextAttnProcessor):
    """Attention with the base model's keys and values, and with the LoRA's inside the mask. Cross-attention reports its map."""

    def __init__(self, masks: LayerMasks, block: str, cross: bool, deltas: list[Product | None]) -> None:
        super().__init__(self._add_map if cross else None)
        self.masks, self.block, self.deltas = masks, block, deltas

    def _add_map(self, *parts: torch.Tensor) -> None:
        self.masks.add_map(self.block, self.masks.rule.concept_attention(*parts))

    def attend(
        self, attn: Attention, heads: tuple[torch.Tensor, ...], context: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The output before its projection, from (query, key, value) of ``context``."""
        base = attended(attn, *heads, bias)
        if not any(self.deltas):
            return base
        pairs = zip(heads[1:], self.deltas, strict=True)
        lora = [x if delta is None else x + split_heads(attn, delta(context)) for x, delta in pairs]
        gate = self.masks.gate(self.block, self.masks.shape[self.block])[..., None].to(base.dtype)
        return base + gate * (attended(attn, heads[0], *lora, bias) - base)


@contextmanager
def masked_lora_hooks(
    unet: nn.Module, deltas: dict[str, Delta], routing: Routing, rule: MaskRule | None, strength: float = 1.0
) -> Iterator[None]:
    """Within the context the LoRA's deltas act inside the rule's masks, times each sample's ``routing.weight``.

    Without a rule they act everywhere. No weight is changed; hooks are removed and the previous attention processors return on exit.
    """
    masks, handles = LayerMasks(routing, rule), []
    blocks = {path: module for path, module in unet.named_modules() if isinstance(module, Transformer2DModel)}
    products = {path: Product(unet.get_submodule(path), delta, strength) for path, delta in deltas.items()}
    layers = [layer for block in blocks.values() for b in block.transformer_blocks for layer in (b.attn1, b.attn2)]
    previous = [(layer, layer.processor) for layer in layers]
    try:
        if rule is not None:
            handles.append(unet.register_forward_pre_hook(lambda *_: masks.gates.clear()))
            for path, block in blocks.items():
                handles += _watch(path, block, masks, products)
        for path, product in products.items():
            handles += _act(path, product, unet, next((b for b in blocks if path.startswith(f"{b}.")), None), masks)
        yield
    finally:
        for layer, processor in previous:
            layer.set_processor(processor)
        for handle in handles:
            handle.remove()


def _watch(path: str, module: Transformer2DModel, masks: LayerMasks, products: dict[str, Product]) -> list:
    """Read the maps of a block's cross-attentions; blend the attentions whose keys or values have deltas."""

    def before_block(_module: nn.Module, args: tuple, named: dict) -> None:
        masks.enter(path, tuple((args[0] if args else named["hidden_states"]).shape[-2:]))

    for number, block in enumerate(module.transformer_blocks):
        for name, layer in (("attn1", block.attn1), ("attn2", block.attn2)):
            pair = [products.get(f"{path}.transformer_blocks.{number}.{name}.{part}") for part in ("to_k", "to_v")]
            if name == "attn2" or any(pair):
                check_plain(path, layer)
                layer.set_processor(BlendedAttnProcessor(masks, path, name == "attn2", pair))
    last = module.proj_out.register_forward_pre_hook(lambda *_: masks.finish(path))
    return [module.register_forward_pre_hook(before_block, with_kwargs=True), last]


def _act(path: str, product: Product, unet: nn.Module, block: str | None, masks: LayerMasks) -> list:
    """Hooks that add one layer's delta."""
    owner, _, leaf = path.rpartition(".")
    layer, parent = product.layer, unet.get_submodule(owner)
    if masks.rule is None:
        return [layer.register_forward_hook(_added(product, masks.weight))]
    if isinstance(parent, Attention) and leaf in ("to_k", "to_v"):
        return []  # see BlendedAttnProcessor
    if isinstance(layer, nn.Conv2d):
        return [layer.register_forward_hook(_added(product, lambda y: _over_pixels(masks.gate(block, tuple(y.shape[-2:])), y)))]  # fmt: skip
    if block is not None:
        return [layer.register_forward_hook(_added(product, lambda y: masks.gate(block, masks.shape[block])[..., None].to(y.dtype)))]  # fmt: skip
    if isinstance(parent, ResnetBlock2D) and parent.time_embedding_norm == "default":
        return _shift(product, parent, masks)
    return [layer.register_forward_hook(_added(product, masks.weight))]


def _over_pixels(gate: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return gate.to(like.dtype).view(len(gate), 1, *like.shape[-2:])


def _added(product: Product, gate: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def hook(_module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + gate(output) * product(args[0])

    return hook


def _shift(product: Product, parent: ResnetBlock2D, masks: LayerMasks) -> list:
    """Hooks for a ResNet block, which adds the projected time to every pixel before its second norm: the delta joins it there."""
    shift: list[torch.Tensor] = []

    def projected(_module: nn.Module, args: tuple, _output: torch.Tensor) -> None:
        shift[:] = [product(args[0])[:, :, None, None]]

    def before_norm(_module: nn.Module, args: tuple) -> tuple:
        return (args[0] + _over_pixels(masks.gate(None, tuple(args[0].shape[2:])), args[0]) * shift[0],)

    return [parent.time_emb_proj.register_forward_hook(projected), parent.norm2.register_forward_pre_hook(before_norm)]


@contextmanager
def text_encoder_lora(
    towers: list[nn.Module], deltas: tuple[dict[str, Delta], ...], strength: float = 1.0
) -> Iterator[None]:
    """Replaces W by W + strength · ΔW in the text towers within the context: text has no pixels to mask. The original tensors return
    on exit."""
    with ExitStack() as stack:
        for tower, layers in zip(towers, deltas, strict=False):
            weights = {}
            for path, delta in layers.items():
                weight = tower.get_submodule(path).weight.detach()
                weights[f"{path}.weight"] = weight.float() + strength * delta.matrix().view_as(weight).to(weight.device)
            stack.enter_context(patched_weights(tower, weights))
        yield
