"""The real encoders' architectures with random weights: preprocessing by plain Pillow and NumPy, short texts, WordNet's cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from persres.config.schema import Clip, Dino
from persres.datasets.wordnet import load_nouns
from persres.images import list_photos, load_photo
from persres.metrics.clip_scores import ClipEncoder
from persres.metrics.dino_scores import DinoEncoder, preprocessing
from persres.metrics.nouns import FILE, NounList, noun_features
from persres.metrics.short_texts import can_shorten, context_of, lengths
from tests.support.family_models import write_photographs

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def clip() -> ClipEncoder:
    """The reference evaluation's CLIP, ViT-B/32, at full size."""
    torch.manual_seed(0)
    return ClipEncoder(Clip(model="ViT-B-32-quickgelu", pretrained=None), "cpu")


def plain(image: Image.Image, resize: int, crop: int, mean, std) -> np.ndarray:
    """Short side to ``resize`` (bicubic), centre crop, mean and std; [h, w, 3]."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((resize * width // short, resize * height // short), Image.Resampling.BICUBIC)
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float64) / 255
    return (pixels - np.array(mean)) / np.array(std)


def test_preprocessing_is_the_reference_evaluations(clip, tmp_path):
    import open_clip

    settings = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai")
    assert (settings["mean"], settings["std"], settings["interpolation"], settings["resize_mode"]) == (
        *OPENAI,
        "bicubic",
        "shortest",
    )
    dino = timm.models.get_pretrained_cfg("vit_small_patch16_224.dino")
    assert (dino.mean, dino.std) == IMAGENET
    ours = preprocessing(Dino(), dino.mean, dino.std)
    photos = list_photos(write_photographs(tmp_path / "photos"))
    assert len(photos) == 5, "portrait, landscape, turned by EXIF, CMYK, small"
    for path in photos:
        image = load_photo(path)
        for actual, wanted in (
            (clip.preprocess(image), plain(image, 224, 224, *OPENAI)),
            (ours(image), plain(image, 256, 224, *IMAGENET)),
        ):
            np.testing.assert_allclose(actual.permute(1, 2, 0).numpy(), wanted, atol=1e-5)


def test_dinov2_runs_at_224_pixels_with_position_embeddings_of_518(tmp_path):
    """timm resamples them on loading; the feature is the class token's."""
    from safetensors.torch import save_file

    small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    torch.manual_seed(0)
    large = timm.create_model("vit_small_patch14_dinov2", pretrained=False, **small).eval()
    save_file({k: v.contiguous() for k, v in large.state_dict().items()}, tmp_path / "model.safetensors")
    settings = {
        "architecture": "vit_small_patch14_dinov2",
        "num_classes": 0,
        "model_args": small,
        "pretrained_cfg": {
            "input_size": [3, 518, 518],
            "fixed_input_size": True,
            "mean": IMAGENET[0],
            "std": IMAGENET[1],
            "num_classes": 0,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    encoder = DinoEncoder(Dino(model=f"local-dir:{tmp_path}"), "cpu")
    assert large.pos_embed.shape[1] == 1 + 37**2 and encoder.model.pos_embed.shape[1] == 1 + 16**2
    image = load_photo(list_photos(write_photographs(tmp_path / "photos"))[0])
    grid = large.pos_embed[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(encoder.model.pos_embed[:, 1:], wanted, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        token = encoder.model.forward_features(encoder.preprocess(image)[None])[:, 0]
    torch.testing.assert_close(encoder.images([image]), torch.nn.functional.normalize(token, dim=1))


def test_a_short_text_has_the_features_of_the_padded_one(clip, tiny_encoders):
    """The encoder is causal: padding after the end token has no effect."""
    nouns = load_nouns()[:: len(load_nouns()) // 16]
    for encoder in (clip, ClipEncoder(Clip(**tiny_encoders["clip"]), "cpu")):
        assert can_shorten(encoder.model)
        before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
        tokens = encoder.tokenize(nouns)
        lasts = lengths(encoder.model, tokens)
        assert int(lasts.min()) >= 2 and int(lasts.max()) < tokens.shape[1], "there is padding to leave out"
        tokens = tokens[lasts.argsort(stable=True)]
        short = encoder.tokens(tokens, batch=8)
        with torch.no_grad():
            padded = torch.nn.functional.normalize(encoder.model.encode_text(tokens), dim=1)
        torch.testing.assert_close(short, padded, atol=1e-5, rtol=0)
        assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())


def test_a_bidirectional_encoder_runs_unchanged(clip):
    import open_clip

    bidirectional = open_clip.CustomTextCLIP(
        16,
        {"layers": 1, "width": 16, "head_width": 16, "patch_size": 16, "image_size": 32},
        {
            "context_length": 8,
            "vocab_size": 30,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "pool_type": "last",
        },
    ).eval()
    tokens = torch.randint(1, 30, (3, 8))
    assert not can_shorten(bidirectional) and lengths(bidirectional, tokens).tolist() == [8, 8, 8]
    with context_of(bidirectional, 8), torch.no_grad():
        assert bidirectional.encode_text(tokens).shape == (3, 16)


def test_nouns_are_encoded_once_and_a_kill_costs_one_chunk(tiny_encoders, tmp_path, monkeypatch):
    nouns = [
        f"{a} {b}"
        for a in ("red", "big robot", "cat", "a very old green")
        for b in ("mug", "cat", "robot", "fish", "tree")
    ]
    (tmp_path / "n.txt").write_text("\n".join(nouns))
    clip, where, words = Clip(**tiny_encoders["clip"]), tmp_path / "work", str(tmp_path / "n.txt")

    def nouns_in(template: str) -> NounList:
        return NounList(clip, template, words)

    monkeypatch.setattr("persres.metrics.nouns.CHUNK", 6)
    encoded: list[int] = []
    plain_tokens = ClipEncoder.tokens

    def counted(self, tokens, batch=512):
        if len(encoded) == 2:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(tokens))
        return plain_tokens(self, tokens, batch)

    monkeypatch.setattr(ClipEncoder, "tokens", counted)
    with pytest.raises(KeyboardInterrupt):
        noun_features(nouns_in("a photo of a {}"), where, "cpu", batch=4)
    unit = nouns_in("a photo of a {}").unit()
    (unit.folder(where) / "parts" / "0001.safetensors").write_bytes(b"torn")
    features = noun_features(nouns_in("a photo of a {}"), where, "cpu", batch=4)
    assert encoded == [6, 6, 0, 6, 6, 2], "the whole chunk is reused, the torn and the missing ones are encoded"
    assert torch.equal(noun_features(nouns_in("a photo of a {}"), where, "cpu"), features) and len(encoded) == 6
    assert [p.name for p in unit.folder(where).iterdir() if p.suffix == ".safetensors"] == [FILE]
    wanted = ClipEncoder(clip, "cpu").texts([f"a photo of a {noun}" for noun in nouns])
    torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)
    assert nouns_in("{}").unit().hash != unit.hash
    (tmp_path / "n.txt").write_text("\n".join(nouns[1:]))
    assert nouns_in("a photo of a {}").unit().hash != unit.hash
