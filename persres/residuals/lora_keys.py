"""Keys of LoRA files, by whichever tool wrote them: which part of the pipeline, which layer, which factor.

Layers are compared by names with ``_`` for ``.``, as kohya writes them, so one table of a model's layers serves every spelling: diffusers'
paths, the original model's (LDM) names, and old attention processors. The table's size is the model's; nothing of a file is evaluated.

Sources: kohya-ss/sd-scripts ``networks/lora.py``; ComfyUI ``comfy/lora.py`` and ``comfy/utils.py``; OneTrainer ``convert_lora_util.py``;
diffusers ``state_dict_utils.py``; peft ``get_peft_model_state_dict``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from persres.residuals.ldm_names import LAYERS, ldm_name

if TYPE_CHECKING:  # a wrong call is an error at once, and torch takes seconds to import
    from torch import nn

UNET, TOWERS = "unet", ("text_encoder", "text_encoder_2")
PEFT_PREFIX = "base_model.model."
# The starts of keys by part, longer ones first where one begins another. Keys without any are of a U-Net alone.
PREFIXES = {
    "lora_unet_": UNET,
    "unet.": UNET,
    "model.diffusion_model.": UNET,
    "diffusion_model.": UNET,
    "lora_te1_": TOWERS[0],
    "lora_te2_": TOWERS[1],
    "lora_te3_": "a third text encoder",
    "lora_te_": TOWERS[0],
    "text_encoder.": TOWERS[0],
    "text_encoder_2.": TOWERS[1],
    "text_encoder_3.": "a third text encoder",
    "text_encoders.clip_l.transformer.": TOWERS[0],
    "text_encoders.clip_h.transformer.": TOWERS[0],
    "text_encoders.clip_g.transformer.": TOWERS[1],
    "text_encoders.": "another text encoder",
    "clip_l.": TOWERS[0],
    "clip_h.": TOWERS[0],
    "clip_g.": TOWERS[1],
    "t5xxl.": "a T5 text encoder",
    "cond_stage_model.transformer.": TOWERS[0],
    "conditioner.embedders.0.transformer.": TOWERS[0],
    "lora_prior_": "a Stable Cascade model",
    "lora_transformer_": "a diffusion transformer",
    "transformer.": "a diffusion transformer",
}
_TOWER_STARTS = ("text_model.", "encoder.layers.", "text_projection")  # of a text encoder's adapter alone
_FACTOR = re.compile(r"(?:\.lora_(A|B|down|up)(?:\.[A-Za-z]\w{0,99})?|[._]lora(?:_linear_layer)?\.(down|up))\.weight$")
_DOWN = ("A", "down")
ALPHA = ".alpha"


class LoraKey(NamedTuple):
    """``part``: unet, a text tower, or words for what no Stable Diffusion has; ``layer`` as the file spells it; ``factor``: down, up, alpha."""

    part: str
    layer: str
    factor: str


def parse_key(key: str) -> LoraKey | None:
    """Returns what a key stands for, None where it is no factor and no alpha of a LoRA."""
    name = key.removeprefix(PEFT_PREFIX)
    match = _FACTOR.search(name)
    if match is None and not name.endswith(ALPHA):
        return None
    factor = "alpha" if match is None else "down" if (match[1] or match[2]) in _DOWN else "up"
    layer = name.removesuffix(ALPHA) if match is None else name[: match.start()]
    for prefix, part in PREFIXES.items():
        if layer.startswith(prefix):
            return LoraKey(part, layer.removeprefix(prefix), factor)
    return LoraKey(TOWERS[0] if layer.startswith(_TOWER_STARTS) else UNET, layer, factor)


def flat(layer: str) -> str:
    """Returns a layer's name in the spelling that all tools have in common."""
    return layer.replace(".processor", "").removeprefix("text_model.").replace(".", "_").removeprefix("text_model_")


def layer_names(model: nn.Module) -> dict[str, str]:
    """Returns the paths of a model's layers that have weights, by every name (see :func:`flat`) that a tool gives them."""
    config = getattr(model, "config", None)
    layers = getattr(config, "layers_per_block", None)
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        if getattr(module, "weight", None) is not None:
            for name in _spellings(path, layers if isinstance(layers, int) else LAYERS):
                names.setdefault(flat(name), path)
    return names


def _spellings(path: str, layers: int) -> list[str]:
    original = ldm_name(path, layers)
    names = [path, original]
    if ".upsamplers." in path:
        names.append(original.replace(".2.conv", ".1.conv"))  # in a block without attention
    names += [name.removesuffix(".0") for name in names if name.endswith(".to_out.0")]
    for ours, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
        if path.endswith(f".self_attn.{ours}"):
            names.append(path.removesuffix(ours) + old)
    return names
