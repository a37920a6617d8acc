"""Write the trained models as folders in the hub's layout: ``sd/`` loads as a StableDiffusionPipeline."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from persres.experiments.miniworld_training.recipe import Recipe
from persres.experiments.miniworld_training.tokenizer import write_tokenizer
from persres.experiments.miniworld_training.unet import SCHEDULER


def text_tower(clip: torch.nn.Module, config: dict) -> CLIPTextModel:
    """Return the text encoder of an open_clip model as transformers' ``CLIPTextModel`` with the same hidden states.

    ``config`` is the open_clip ``model_cfg``. The projection to the joint space is left out.
    """
    cfg = config["text_cfg"]
    width, vocab = cfg["width"], cfg["vocab_size"]
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=cfg["layers"],
            num_attention_heads=cfg["heads"],
            max_position_embeddings=cfg["context_length"],
            hidden_act="gelu",
            bos_token_id=vocab - 2,
            eos_token_id=vocab - 1,
            pad_token_id=vocab - 1,
            projection_dim=config["embed_dim"],
        )
    )
    source = clip.state_dict()
    state = {
        "embeddings.token_embedding.weight": source["token_embedding.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        state[f"final_layer_norm.{kind}"] = source[f"ln_final.{kind}"]
        for i in range(cfg["layers"]):
            block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            for name, part in zip("qkv", source[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                state[f"{layer}.self_attn.{name}_proj.{kind}"] = part
            pairs = {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }
            state |= {f"{layer}.{new}.{kind}": source[f"{block}.{old}.{kind}"] for old, new in pairs.items()}
    prefix = "text_model." if any(k.startswith("text_model.") for k in tower.state_dict()) else ""
    tower.load_state_dict({prefix + k: v for k, v in state.items()}, strict=False)
    missing = set(tower.state_dict()) - {prefix + k for k in state}
    if any("position_ids" not in key for key in missing):
        raise RuntimeError(f"text tower has weights that open_clip lacks: {sorted(missing)}")
    return tower.eval()


def save_text_side(recipe: Recipe, clip: torch.nn.Module, clip_folder: Path, sd: Path) -> None:
    """Write ``tokenizer/`` and ``text_encoder/`` of the pipeline, in fp16."""
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    write_tokenizer(sd / "tokenizer", recipe.prompt_length)
    text_tower(clip, config).half().save_pretrained(sd / "text_encoder")


def save_pipeline_index(sd: Path) -> None:
    """Write ``model_index.json`` and ``scheduler/`` by saving the assembled pipeline."""
    DDIMScheduler(**SCHEDULER).save_pretrained(sd / "scheduler")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(sd / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(sd / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(sd / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(sd / "unet"),
        scheduler=DDIMScheduler.from_pretrained(sd / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(sd)
