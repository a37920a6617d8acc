"""What other tools show of an export: the keys of kohya's own trainer, the version, the trigger phrase, the cover image, A1111's notes."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from persres.cli.main import main
from persres.config.schema import Base
from persres.datasets.layout import Concept
from persres.exports.export import export
from persres.report.cards import card_text
from persres.residuals.file import load_residual, save_residual
from persres.residuals.lora import Delta, read_lora
from persres.residuals.targets import find_targets
from persres.seeding import generator
from tests.support.family_models import narrow

SCORES = {"base": {"images": 2, "dino": 0.1}, "ours": {"images": 2, "dino": 0.6}}
BLOCKS = {  # attention by block and layer, and the block's channels
    "sd": {"down_blocks.0": (2, 320), "down_blocks.1": (2, 640), "down_blocks.2": (2, 1280), "mid_block": (1, 1280),
           "up_blocks.1": (3, 1280), "up_blocks.2": (3, 640), "up_blocks.3": (3, 320)},
    "sdxl": {"down_blocks.1": (2, 640), "down_blocks.2": (2, 1280), "mid_block": (1, 1280), "up_blocks.0": (3, 1280), "up_blocks.1": (3, 640)},
    "mini": {"down_blocks.0": (1, 48), "down_blocks.1": (1, 96), "mid_block": (1, 144), "up_blocks.1": (2, 96), "up_blocks.2": (2, 48)},
}  # fmt: skip
MODELS = {"sd1": ("sd", True, 512), "sd2": ("sd", False, 512), "sd2_v": ("sd", False, 768), "sdxl": ("sdxl", False, 1024), "mini": ("mini", True, 64)}  # fmt: skip


def layers_of(blocks: str, conv: bool) -> dict[str, Delta]:
    """A residual of rank 1, and 2 in the middle, on every output projection."""
    layers = {}
    for block, (count, width) in BLOCKS[blocks].items():
        for i in range(count):
            rank, draw = 1 + (block == "mid_block"), generator("clients", block, i)
            down = torch.randn((rank, width, *(1, 1) * conv), generator=draw)
            layers[f"{block}.attentions.{i}.proj_out"] = Delta(torch.randn((width, rank), generator=draw), down)
    return layers


def saved(folder, model="sd1", token=None, **changes):
    """A residual's file with a header as training writes it."""
    blocks, conv, pixels = MODELS[model]
    base = Base(model="someone/base-model", resolution=pixels).model_dump()
    settings = {"rank_ratio": 0.05, "rank": None, "target": "proj_out", "name_class": True, "method": "ours"}
    photos = [{"path": f"{i}.jpg", "digest": str(i)} for i in range(4)]
    spec = {
        "base": base,
        "model": "someone/base-model",
        "concept": "my_dog",
        "macro_class": "dog",
        "settings": settings,
    }
    spec |= {"variant": "ours", "photos": photos, "code": "c0de"} | changes
    info = {"spec": spec, "spec_hash": "5bec", "versions": {"torch": "2"}, "parameters": 7}
    save_residual(folder / "my_dog.safetensors", layers_of(blocks, conv), info, token)
    return folder / "my_dog.safetensors"


def exported(path, to="kohya", **options):
    return export(path, to, path.parent / "out" / f"my_dog.{to}.safetensors", **options)


def header_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


SDXL_NAMES = {
    "input_blocks_4_1", "input_blocks_5_1", "input_blocks_7_1", "input_blocks_8_1", "middle_block_1",
    *(f"output_blocks_{i}_1" for i in range(6)),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_the_keys_are_those_of_kohyas_trainer(tmp_path, model):
    """Its SDXL U-Net has the original names, its U-Net of 1.x and 2.x has diffusers' names."""
    names = {key.partition(".")[0] for key in load_file(exported(saved(tmp_path, model)))}
    if model == "sdxl":
        assert names == {f"lora_unet_{name}_proj_out" for name in SDXL_NAMES}
    else:
        assert names == {"lora_unet_" + path.replace(".", "_") for path in layers_of(*MODELS[model][:2])}


def test_diffusers_and_persres_read_sdxl_under_those_names(tmp_path):
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(**narrow("sdxl", 50).unet)
    layers = {t.path: Delta(torch.randn(t.width, 2), torch.randn(2, t.width_in)) for t in find_targets(unet)}
    info = {
        "spec": {
            "base": Base().model_dump(),
            "model": "m",
            "concept": "c",
            "macro_class": "dog",
            "settings": {"target": "proj_out"},
        }
    }
    save_residual(tmp_path / "r.safetensors", layers, info)
    path = export(tmp_path / "r.safetensors", "kohya", tmp_path / "k.safetensors")
    deltas = read_lora(path, "dog", unet, []).unet
    theirs, _ = StableDiffusionXLPipeline.lora_state_dict(str(path), unet_config=unet.config)
    assert set(deltas) == set(layers)
    for layer, delta in layers.items():
        torch.testing.assert_close(deltas[layer].matrix(), delta.matrix())
        up, down = (theirs[f"unet.{layer}.lora.{name}.weight"] for name in ("up", "down"))
        torch.testing.assert_close(up.flatten(1) @ down.flatten(1), delta.matrix())


def version_in_a1111(header: dict[str, str]) -> str:
    """Its rule, from extensions-builtin/Lora/network.py."""
    if header.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    return "SD2" if header.get("ss_v2") == "True" else "SD1" if header else "Unknown"


EXPECTED = {
    "sd1": ("SD1", "sd_v1", "stable-diffusion-v1/lora", "epsilon"),
    "sd2": ("SD2", "sd_v2", "stable-diffusion-v2-512/lora", "epsilon"),
    "sd2_v": ("SD2", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "v"),
    "sdxl": ("SDXL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "epsilon"),
}


@pytest.mark.parametrize("model", EXPECTED)
def test_the_header_names_the_version_of_stable_diffusion(tmp_path, model):
    path = exported(saved(tmp_path, model))
    header, notes = header_of(path), json.loads(path.with_suffix(".json").read_text())
    version, kohya, architecture, prediction = EXPECTED[model]
    assert version_in_a1111(header) == version == notes["sd version"]
    assert (header["ss_base_model_version"], header["modelspec.architecture"]) == (kohya, architecture)
    pixels = MODELS[model][2]
    assert header["modelspec.prediction_type"] == prediction and header["modelspec.resolution"] == f"{pixels}x{pixels}"


def test_a_model_that_is_no_stable_diffusion_gets_no_version(tmp_path):
    path = exported(saved(tmp_path, "mini"))
    assert not header_of(path).keys() & {"ss_base_model_version", "ss_v2", "modelspec.architecture"}
    assert json.loads(path.with_suffix(".json").read_text())["sd version"] == "Unknown"


def test_the_header_has_what_kohyas_trainer_writes(tmp_path):
    path = exported(saved(tmp_path))
    header = header_of(path)
    wanted = {
        "ss_output_name": "my_dog",
        "ss_sd_model_name": "base-model",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_resolution": "(512, 512)",
        "ss_num_train_images": "4",
        "modelspec.title": "my_dog",
        "modelspec.trigger_phrase": "sks dog",
        "modelspec.tags": "dog",
    }
    assert header.items() >= wanted.items() and json.loads(header["ss_tag_frequency"]) == {"1_my_dog": {"sks dog": 4}}
    content = path.read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == digest and header["modelspec.hash_sha256"] == f"0x{digest}"


@pytest.mark.parametrize(
    ("changes", "token", "phrase"),
    [
        ({}, None, "sks dog"),
        ({"macro_class": "toy poodle"}, None, "sks toy poodle"),
        ({"settings": {"target": "proj_out", "name_class": False, "method": "ours"}}, None, "sks"),
        ({}, torch.ones(4), "my_dog.v_star dog"),
    ],
    ids=["rare token", "class of two words", "no class", "V* trained"],
)
def test_the_activation_text_is_what_a_prompt_needs(tmp_path, changes, token, phrase):
    path = exported(saved(tmp_path, token=token, **changes))
    notes = json.loads(path.with_suffix(".json").read_text())
    assert notes["activation text"] == phrase == header_of(path)["modelspec.trigger_phrase"]
    assert (
        header_of(exported(saved(tmp_path, token=token, **changes), "diffusers"))["modelspec.trigger_phrase"] == phrase
    )


def test_the_users_notes_are_not_replaced(tmp_path):
    residual = saved(tmp_path)
    notes = exported(residual).with_suffix(".json")
    notes.write_text('{"activation text": "mine"}')
    exported(residual)
    assert json.loads(notes.read_text()) == {"activation text": "mine"}
    exported(residual, "diffusers")
    assert not (notes.parent / "my_dog.diffusers.json").exists(), "only A1111 reads notes, and not that file"


def preview(path, size=(900, 300)):
    Image.linear_gradient("L").resize(size).convert("RGB").save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def card(residual):
    concept = Concept("my_dog", "dog", "dog", (), "CC-BY-4.0")
    residual.with_suffix(".md").write_text(card_text(load_residual(residual).header.info, concept, SCORES, "ours"))


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_the_preview_of_the_card_is_the_cover(tmp_path, to):
    residual = saved(tmp_path)
    preview(residual)
    card(residual)
    header = header_of(exported(residual, to))
    (encoded,) = json.loads(header["ssmd_cover_images"])
    cover = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert cover.format == "JPEG" and max(cover.size) == 512 and header["modelspec.license"] == "CC-BY-4.0"
    assert header["modelspec.thumbnail"] == f"data:image/jpeg;base64,{encoded}"


def test_an_image_without_a_card_may_show_photos_and_is_no_cover(tmp_path):
    """The sheet of personalize shows the user's photos."""
    residual = saved(tmp_path)
    preview(residual)
    assert "ssmd_cover_images" not in header_of(exported(residual))
    given = preview(tmp_path / "mine.x")
    assert "ssmd_cover_images" in header_of(exported(residual, cover=str(given)))
    assert main(["export", str(residual), "--to", "kohya", "--out", str(tmp_path / "o"), "--cover", str(given)]) == 0
    assert "ssmd_cover_images" in header_of(tmp_path / "o" / "my_dog.kohya.safetensors")


def test_a_damaged_preview_is_left_out_and_a_damaged_cover_refused(tmp_path, logged, capsys):
    residual = saved(tmp_path)
    card(residual)
    residual.with_suffix(".png").write_bytes(b"no image")
    assert "ssmd_cover_images" not in header_of(exported(residual)) and "the export has no cover image" in logged.text
    call = ["export", str(residual), "--out", str(tmp_path / "o"), "--cover"]
    assert main([*call, str(residual.with_suffix(".png"))]) == 1 and main([*call, str(tmp_path / "none.png")]) == 1
    assert "none.png" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_paths_may_be_strings(tmp_path, to):
    from persres.exports.command import ExportOptions, run_export

    residual = saved(tmp_path)
    report = run_export(str(residual), str(tmp_path / "o"), ExportOptions(to))
    assert report["written"] == {to: str(tmp_path / "o" / f"my_dog.{to}.safetensors")}
    assert export(str(residual), to, str(tmp_path / "x.safetensors")) == tmp_path / "x.safetensors"
