"""LAG for any LoRA: every delta of the U-Net acts only where its subject is, as the subject's own cross-attention says (paper 3.3,
which speaks of output projections alone).

The mask is LAG's (:class:`persres.sampling.lag.MaskRule`), at each layer's own size, and no further U-Net pass is made:

- layers over space (convolutions, queries, outputs of attention, feed-forward, projections): W x + M ⊗ ΔW x;
- keys and values have text's tokens or the whole picture for rows, not a query's place. So both attentions are computed and
  blended where they arrive: (1 − M) ⊗ Attn(Q, K, V) + M ⊗ Attn(Q, K + ΔK, V + ΔV), by query. Outside of the mask a query reads
  the base model's keys and values;
- a ResNet block's projection of the time shifts its channels everywhere alike: the shift is masked after it is spread over space;
- what has no place at all (the embeddings of time and size) is left whole, as the text towers' deltas are.

The map is read with the base model's keys, so that the LoRA can't move its own mask by them. A layer before its block's cross-attention takes
the maps of the step before (or, under a shared map, of the blocks before it in this step too); one without a map of its own, as outside of all
transformer blocks, takes the shared map, or all blocks' together where there is none. In the first step, until the first map is there, nothing is known and
the base model's layers stand: a delta whose place is not known does not act.
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

from persres.models.attention import attended, projected, split_heads
from persres.models.weight_patching import patched_weights
from persres.residuals.bank import Routing
from persres.residuals.lora import Delta
from persres.sampling.lag import MaskRule, check_plain
from persres.sampling.mask_config import blended, resized

Shape = tuple[int, int]


class Product:
    """ΔW x of one layer, without forming ΔW; in the precision and on the device of x."""

    def __init__(self, layer: nn.Module, delta: Delta, strength: float = 1.0) -> None:
        self.layer, self.up, self.down = layer, delta.up * strength, delta.down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x as the layer takes it -> what is added to its output."""
        if self.up.device != x.device or self.up.dtype != x.dtype:
            self.up, self.down = self.up.to(x), self.down.to(x)
        if isinstance(self.layer, nn.Conv2d):
            layer = self.layer
            few = F.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
            return F.conv2d(few, self.up[..., None, None])
        return F.linear(F.linear(x, self.down), self.up)


class Places:
    """Where the deltas of one call act, pass by pass: masks [n, pixels] times each sample's weight.

    Without a rule everywhere. ``shape``: each transformer block's height and width in this pass.
    """

    def __init__(self, routing: Routing, rule: MaskRule | None) -> None:
        self.routing, self.rule = routing, rule
        self.shape: dict[str, Shape] = {}
        self.latest: dict[str, torch.Tensor] = {}  # block -> its newest map [s, h, w]
        self.concept_attention: dict[str, list[torch.Tensor]] = {}  # block -> its layers' maps in this pass
        self.known: dict[tuple[str | None, Shape], torch.Tensor] = {}  # masks that no map has changed since

    def weight(self, like: torch.Tensor) -> torch.Tensor:
        """Each sample's weight, [n, 1, …] as ``like``."""
        return self.routing.weight.to(like).view(-1, *[1] * (like.ndim - 1))

    def gate(self, block: str | None, shape: Shape) -> torch.Tensor:
        """Mask times weight, [n, pixels]; [n, 1] without a rule."""
        if self.rule is None:
            return self.routing.weight[:, None]
        key = (None if self.rule.mask_config.shared and self.rule.newest else block, shape)
        if key not in self.known:
            self.known[key] = self._mask(block, shape) * self.routing.weight[:, None]
        return self.known[key]

    def _mask(self, block: str | None, shape: Shape) -> torch.Tensor:
        rule, own = self.rule, None
        if block in self.latest:
            own = resized(self.latest[block], shape)
        elif self.latest:
            own = blended(list(self.latest.values()), None, shape).unflatten(1, shape)
        if own is None and not (rule.mask_config.shared and rule.newest):
            return rule.everywhere[:, None].float().expand(-1, shape[0] * shape[1])
        return rule.mask_at(shape, own)

    def enter(self, block: str, shape: Shape) -> None:
        """A pass comes to a block of this height and width."""
        self.shape[block], self.concept_attention[block] = shape, []

    def hear(self, block: str, found: torch.Tensor) -> None:
        """One layer's map, [s, pixels]; the block's is the mean of its layers so far."""
        self.concept_attention[block].append(found)
        self.latest[block] = torch.stack(self.concept_attention[block]).mean(0).unflatten(1, self.shape[block])
        self.known.clear()

    def finish(self, block: str) -> None:
        """The block's map is whole, and is given to the rule."""
        self.rule.finish(f"{block}.proj_out", torch.stack(self.concept_attention[block]).mean(0), self.shape[block])
        self.latest[block] = self.rule.before.get(block, self.latest[block])
        self.known.clear()


class BlendedAttention:
    """Attention with the base model's keys and values, and with the LoRA's where the mask is. A cross-attention reports its map."""

    def __init__(self, places: Places, block: str, cross: bool, key: Product | None, value: Product | None) -> None:
        self.places, self.block, self.cross, self.key, self.value = places, block, cross, key, value

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers calls a processor."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = split_heads(attn, attn.to_q(hidden_states))
        key, value = split_heads(attn, attn.to_k(context)), split_heads(attn, attn.to_v(context))
        if self.cross:
            self.places.hear(self.block, self.places.rule.concept_attention(query, key, attn.scale, attention_mask))
        out = attended(attn, query, key, value, attention_mask)
        if self.key is not None or self.value is not None:
            key = key if self.key is None else key + split_heads(attn, self.key(context))
            value = value if self.value is None else value + split_heads(attn, self.value(context))
            gate = self.places.gate(self.block, self.places.shape[self.block])[..., None].to(out.dtype)
            out = out + gate * (attended(attn, query, key, value, attention_mask) - out)
        return projected(attn, out)


@contextmanager
def masked_lora_hooks(
    unet: nn.Module, deltas: dict[str, Delta], routing: Routing, rule: MaskRule | None, strength: float = 1.0
) -> Iterator[None]:
    """Within the context the LoRA's deltas act inside of the rule's masks, or without a rule everywhere, times each sample's
    ``routing.weight``. No weight is changed; hooks go and the attention processors of before return on exit, also after an error."""
    places, handles = Places(routing, rule), []
    blocks = {path: module for path, module in unet.named_modules() if isinstance(module, Transformer2DModel)}
    products = {path: Product(unet.get_submodule(path), delta, strength) for path, delta in deltas.items()}
    layers = [layer for block in blocks.values() for b in block.transformer_blocks for layer in (b.attn1, b.attn2)]
    before = [(layer, layer.processor) for layer in layers]
    try:
        if rule is not None:
            handles.append(unet.register_forward_pre_hook(lambda *_: places.known.clear()))
            for path, block in blocks.items():
                handles += _listen(path, block, places, products)
        for path, product in products.items():
            handles += _act(path, product, unet, next((b for b in blocks if path.startswith(f"{b}.")), None), places)
        yield
    finally:
        for layer, processor in before:
            layer.set_processor(processor)
        for handle in handles:
            handle.remove()


def _listen(path: str, module: Transformer2DModel, places: Places, products: dict[str, Product]) -> list:
    """Maps of every cross-attention of a block; attentions whose keys or values learned are blended."""

    def entered(_module: nn.Module, args: tuple, named: dict) -> None:
        places.enter(path, tuple((args[0] if args else named["hidden_states"]).shape[-2:]))

    for number, block in enumerate(module.transformer_blocks):
        for name, layer in (("attn1", block.attn1), ("attn2", block.attn2)):
            pair = [products.get(f"{path}.transformer_blocks.{number}.{name}.{part}") for part in ("to_k", "to_v")]
            if name == "attn2" or any(pair):
                check_plain(path, layer)
                layer.set_processor(BlendedAttention(places, path, name == "attn2", *pair))
    last = module.proj_out.register_forward_pre_hook(lambda *_: places.finish(path))
    return [module.register_forward_pre_hook(entered, with_kwargs=True), last]


def _act(path: str, product: Product, unet: nn.Module, block: str | None, places: Places) -> list:
    """The hooks by which one layer's delta acts."""
    owner, _, leaf = path.rpartition(".")
    layer, parent = product.layer, unet.get_submodule(owner)
    if places.rule is None:
        return [layer.register_forward_hook(_added(product, places.weight))]
    if isinstance(parent, Attention) and leaf in ("to_k", "to_v"):
        return []  # blended
    if isinstance(layer, nn.Conv2d):
        return [layer.register_forward_hook(_added(product, lambda y: _over_pixels(places.gate(block, tuple(y.shape[-2:])), y)))]  # fmt: skip
    if block is not None:
        return [layer.register_forward_hook(_added(product, lambda y: places.gate(block, places.shape[block])[..., None].to(y.dtype)))]  # fmt: skip
    if isinstance(parent, ResnetBlock2D) and parent.time_embedding_norm == "default":
        return _shift(product, parent, places)
    return [layer.register_forward_hook(_added(product, places.weight))]


def _over_pixels(gate: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return gate.to(like.dtype).view(len(gate), 1, *like.shape[-2:])


def _added(product: Product, gate: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def hook(_module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + gate(output) * product(args[0])

    return hook


def _shift(product: Product, parent: ResnetBlock2D, places: Places) -> list:
    """A ResNet block adds the projected time to every pixel just before its second norm: there the delta is added inside the mask."""
    held: list[torch.Tensor] = []

    def projected(_module: nn.Module, args: tuple, _output: torch.Tensor) -> None:
        held[:] = [product(args[0])[:, :, None, None]]

    def before_norm(_module: nn.Module, args: tuple) -> tuple:
        return (args[0] + _over_pixels(places.gate(None, tuple(args[0].shape[-2:])), args[0]) * held[0],)

    return [parent.time_emb_proj.register_forward_hook(projected), parent.norm2.register_forward_pre_hook(before_norm)]


@contextmanager
def text_encoder_lora(
    towers: list[nn.Module], deltas: tuple[dict[str, Delta], ...], strength: float = 1.0
) -> Iterator[None]:
    """Replaces W by W + strength · ΔW in the text towers within the context: text has no pixels to mask. The original tensors return
    on exit."""
    with ExitStack() as stack:
        for tower, layers in zip(towers, deltas, strict=False):
            merged = {}
            for path, delta in layers.items():
                weight = tower.get_submodule(path).weight.detach()
                merged[f"{path}.weight"] = weight.float() + strength * delta.matrix().view_as(weight).to(weight.device)
            stack.enter_context(patched_weights(tower, merged))
        yield
