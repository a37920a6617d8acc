"""Shared fixtures: small models with random weights and the real architecture."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads only wait for each other

import pytest
import torch

import persres  # noqa: F401  (before torchvision is imported: persres/models/compat.py)
from tests.support.small_models import tiny_unet

os.environ.setdefault("DO_NOT_TRACK", "1")
torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def unet():
    """A fresh tiny U-Net with conv projections, frozen."""
    return tiny_unet().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """A StableDiffusionPipeline folder with random weights: 32×32 images, 8×8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from persres.experiments.miniworld_training.tokenizer import write_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder / "tokenizer", 24)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae, text, tokenizer, tiny_unet(), scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory) -> dict:
    """CLIP and DINO folders with random weights, as settings."""
    from safetensors.torch import save_file

    from persres.experiments.miniworld_training.clip import new_clip, write_empty
    from persres.experiments.miniworld_training.dino import ARCHITECTURE, MODEL_ARGS, save_dino
    from persres.experiments.miniworld_training.recipe import RECIPE

    folder = tmp_path_factory.mktemp("encoders")
    write_empty(RECIPE, folder / "clip")
    clip, _ = new_clip(folder / "clip", 0)
    state = {k: v.contiguous() for k, v in clip.state_dict().items() if k != "attn_mask"}
    save_file(state, folder / "clip" / "open_clip_model.safetensors")
    import timm

    save_dino(timm.create_model(ARCHITECTURE, **MODEL_ARGS), folder / "dino")
    return {
        "clip": {"model": f"local-dir:{folder / 'clip'}", "pretrained": None},
        "dino": {"model": f"local-dir:{folder / 'dino'}", "resize": 64, "crop": 64},
    }


@pytest.fixture(scope="session")
def tiny_profile(tiny_pipeline, tiny_encoders, tmp_path_factory) -> dict:
    """A profile that runs in seconds: three mini-world concepts, random models."""
    nouns = tmp_path_factory.mktemp("nouns") / "nouns.txt"
    nouns.write_text("mug\nrobot\ncat\n")
    return {
        "base": {"model": str(tiny_pipeline), "resolution": 32},
        "encoders": tiny_encoders,
        "fetch": {
            "dataset": "miniworld",
            "concepts": ["heart_mug", "star_robot", "banded_cat"],
            "references": 3,
            "held_out": 1,
        },
        "macro_class": {"source": "dataset", "nearest": True, "candidates": str(nouns)},
        "train": {"steps": 6, "batch_size": 2, "checkpoint_every": 2},
        "sample": {"steps": 3, "images_per_prompt": 2, "prompts": 4},
        "score": {},
        "tables": {"bootstrap": 200},
        "runtime": {"workers": 1, "device": "cpu", "sample_batch": 3},
    }


@pytest.fixture
def tiny_params(tiny_profile, tmp_path) -> Path:
    """That profile as a params.yaml for one test."""
    import yaml

    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"profile": "tiny", "tiny": tiny_profile}))
    return path


@pytest.fixture
def logged(caplog, monkeypatch):
    """The library's log, also after a test whose command line has set up the logger."""
    logger = logging.getLogger("persres")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="persres")
    return caplog


@pytest.fixture
def server(monkeypatch):
    """A local server to download from (tests/support/local_server.py)."""
    from tests.support.local_server import start

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    served = start()
    yield served
    served.shutdown()
    served.server_close()


SLOWEST_FIRST = (
    "test_dvc",
    "test_dvc_experiments",
    "test_snippets",
    "test_notebook",
    "test_world",
    "test_golden",
    "test_versions",
    "test_versions_trouble",
    "test_flow",
    "test_evidence",
    "test_families",
    "test_pipeline",
    "test_workflow",
    "test_preflight",
    "test_rivals",
    "test_batched_training",
    "test_fleet",
    "test_extending",
    "test_code_digest",
    "test_wheel",
    "test_bench",
    "test_pipeline_multi_concept",
)


def pytest_collection_modifyitems(items):
    """The order of files in a parallel run: a long file that starts last would leave cores idle."""
    rank = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
