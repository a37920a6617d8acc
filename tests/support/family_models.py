"""Stable Diffusion 1.4, 2.1 and XL at a tenth of their width or less: their own blocks, layers and towers, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from persres.experiments.benchmarks.families import FAMILIES, Family, build_pipeline
from persres.experiments.miniworld_training.tokenizer import write_tokenizer

RESOLUTION = 128
_VAE = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "sample_size": RESOLUTION}
_SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_FOUR = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32, "sample_size": 16}


def narrow(name: str, words: int) -> Family:
    """The family at tiny width; depth, kinds of blocks and heads by block stay, the text towers lose layers."""
    text = _SMALL_TEXT | {"vocab_size": words, "num_hidden_layers": 2, "projection_dim": 32}
    if name == "sd14":
        return FAMILIES[name].changed(unet=_FOUR | {"attention_head_dim": 8}, vae=_VAE, text=text)
    if name == "sd21":
        return FAMILIES[name].changed(unet=_FOUR | {"attention_head_dim": (1, 2, 4, 4)}, vae=_VAE, text=text)
    unet = {
        "block_out_channels": (32, 64, 128),
        "cross_attention_dim": 32 + 48,
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 4),
        "sample_size": 16,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 40 + 6 * 16,
    }
    second = {
        "vocab_size": words,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": 40,
    }
    return FAMILIES[name].changed(unet=unet, vae=_VAE, text=text, second=second)


def save_family(name: str, folder: Path) -> Path:
    """A pipeline folder as the hub has it, with a small vocabulary: "!" first, as in CLIP's, the end token last."""
    write_tokenizer(folder / "words", 77)
    path = folder / "words" / "vocab.json"
    words = {"!": 0} | {word: number + 1 for word, number in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(words, ensure_ascii=False))
    torch.manual_seed(0)
    build_pipeline(narrow(name, len(words)), folder / "words").save_pretrained(folder / name)
    return folder / name


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Colours that change slowly, with some grain: nothing in it is symmetrical."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = draw.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8))


def write_photographs(folder: Path) -> Path:
    """What phones and web pages give: portrait, landscape, turned by EXIF, CMYK, small."""
    folder.mkdir(parents=True)
    photograph(480, 640, 1).save(folder / "portrait.jpg")
    photograph(640, 427, 2).save(folder / "landscape.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photograph(640, 480, 3).save(folder / "turned.jpg", exif=exif)
    photograph(500, 400, 4).convert("CMYK").save(folder / "print.jpg")
    photograph(90, 120, 5).save(folder / "small.png")
    return folder
