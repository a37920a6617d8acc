"""Files from strangers: one sentence each, and nothing of them is used."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save

from persres.cli.main import main
from persres.errors import PersresError
from persres.exports.export import layers_of
from persres.units.checkpoints import read_checked, read_residual

GOOD = save({"a": torch.ones(3, 4), "b": torch.zeros(5)}, {"format": "pt"})


def with_header(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


WRONG = {
    "empty": (b"", "it has 0 bytes"),
    "few bytes": (b"\x10\0\0", "it has 3 bytes"),
    "text": (b"not safetensors at all", r"its header would have"),
    "a web page": (b"<html>please log in</html>", r"its header would have"),
    "a pickle": (pickle.dumps({"a": 1}), "not a safetensors file but a pickle; persres reads nothing else"),
    "a ZIP": (b"PK\x03\x04 and so on, as torch writes", "ZIP archive"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "cut": (GOOD[:-7], r"is cut: 7 of 68 bytes are missing"),
    "cut in the header": (GOOD[:40], r"not a readable safetensors file"),
    "too long": (GOOD + b"more", r"goes on for 4 bytes after its end; do not trust it"),
    "a huge header": ((1 << 40).to_bytes(8, "little") + b"{}", r"its header would have 1,099,511,627,776 bytes"),
    "no JSON": ((9).to_bytes(8, "little") + b"{not json}", "not a readable safetensors file"),
    "no tensors' header": (with_header({"a": [1, 2]}), "its header is another's"),
    "a shape that lies": (
        with_header({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 8]}}, bytes(8)),
        "not a readable safetensors file",
    ),
    "NaN": (save({"a": torch.tensor([1.0, float("nan")])}), "a holds NaN or infinity"),
    "infinity": (save({"a": torch.ones(2), "b": torch.tensor([float("inf")]).half()}), "b holds NaN or infinity"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_one_sentence(tmp_path, kind):
    content, message = WRONG[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PersresError, match=message) as caught:
        read_checked(path)
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_right_file_is_read_as_the_library_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    tensors, metadata = read_checked(path)
    assert metadata == {"format": "pt"} and all(torch.equal(tensors[k], v) for k, v in load_file(path).items())
    with pytest.raises(PersresError, match="nothing learned at"):
        read_checked(tmp_path / "none.safetensors")


@pytest.mark.parametrize("magic", [0x80, 0x0580])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, magic):
    """128 or 1408 bytes: the first byte of the file is pickle's own."""
    path = tmp_path / "x.safetensors"
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).ljust(magic).encode()
    path.write_bytes(magic.to_bytes(8, "little") + text + bytes(8))
    assert read_checked(path)[0]["a"].tolist() == [0.0, 0.0]


SETTINGS = {"rank_ratio": 0.05, "rank": None, "target": "proj_out"}
SPEC = {"base": {}, "model": "m", "concept": "c", "macro_class": "mug", "settings": SETTINGS}
FACTORS = {"unet.x.lora_A.weight": torch.ones(2, 3), "unet.x.lora_B.weight": torch.ones(3, 2)}


def entry(**changes) -> str:
    return json.dumps({"format": "persres-residual-1", "spec": SPEC | changes})


HEADERS = {
    "none": (None, "not a persres residual: .*subject="),
    "no JSON": ("{", "its 'persres' entry is not JSON"),
    "too deep": ("[" * 100_000, "its 'persres' entry is not JSON"),
    "a list": ("[1]", r"its 'persres' entry is no mapping but '\[1\]'"),
    "null": ("null", "is no mapping"),
    "a rival's": ('{"format": "persres-rival-1"}', "not a persres residual"),
    "no format": (json.dumps({"spec": SPEC}), "not a persres residual"),
    "no spec": ('{"format": "persres-residual-1"}', r"no usable spec\.model"),
    "spec a list": ('{"format": "persres-residual-1", "spec": [1]}', r"no usable spec\.model"),
    "model a number": (entry(model=3), r"no usable spec\.model"),
    "no concept": (entry(concept=None), r"no usable spec\.concept"),
    "an empty class": (entry(macro_class=" "), r"no usable spec\.macro_class"),
    "no base": (entry(base=None), r"no usable spec\.base"),
    "base a list": (entry(base=[1]), r"no usable spec\.base"),
    "an odd resolution": (entry(base={"resolution": "big"}), r"no usable spec\.base"),
    "an unknown key of base": (entry(base={"code": "x"}), r"no usable spec\.base"),
    "settings a list": (entry(settings=[]), r"no usable spec\.settings\.rank_ratio"),
    "a ratio as text": (entry(settings=SETTINGS | {"rank_ratio": "0.05"}), "rank_ratio"),
    "no number for a ratio": (entry(settings=SETTINGS | {"rank_ratio": float("nan")}), "rank_ratio"),
    "rank 0": (entry(settings=SETTINGS | {"rank": 0}), r"spec\.settings\.rank,"),
    "no target": (entry(settings=SETTINGS | {"target": None}), r"spec\.settings\.target"),
}


def odd(path, kind: str) -> str:
    """Writes a file with that header; what must be said of it."""
    text, message = HEADERS[kind]
    path.write_bytes(save(FACTORS, {} if text is None else {"persres": text}))
    return message


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_no_residual_has_is_one_sentence(tmp_path, kind):
    message = odd(tmp_path / "x.safetensors", kind)
    with pytest.raises(PersresError, match=message) as caught:
        read_residual(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["none", "a list", "no spec", "settings a list"])
def test_the_commands_say_it_too(tmp_path, kind, capsys):
    path = tmp_path / "x.safetensors"
    odd(path, kind)
    assert main(["generate", str(path), "--prompt", "a {}", "--out", str(tmp_path / "o")]) == 1
    assert main(["export", str(path), "--verify", "--out", str(tmp_path / "o")]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("persres: ")]
    assert len(said) == 2 and all("x.safetensors" in line for line in said)


KEYS = {
    "another key": ({"unet.x.weight": torch.ones(2, 2)}, r"'unet\.x\.weight' \[2, 2\] is no layer's factor"),
    "no layer": ({"lora_A.weight": torch.ones(2, 2)}, "is no layer's factor"),
    "a vector": ({"unet.x.lora_A.weight": torch.ones(2)}, r"\[2\] is no layer's factor"),
    "nothing in it": ({"unet.x.lora_A.weight": torch.ones(0, 3)}, "is no layer's factor"),
    "V* a matrix": ({"token": torch.ones(2, 3)}, "'token'"),
    "V* where none is known": ({"token": torch.ones(3)}, "'token'"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_tensor_that_no_residual_has_is_one_sentence(tmp_path, kind):
    tensors, message = KEYS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(FACTORS | tensors, {"persres": entry()}))
    with pytest.raises(PersresError, match=message):
        read_residual(path, frozenset() if kind.endswith("known") else frozenset(["token"]))
    with (
        pytest.raises(PersresError, match=r"x\.safetensors: .*(is no factor|make no matrix)")
        if "V*" not in kind
        else nullcontext()
    ):
        layers_of(path)


def test_a_residual_says_what_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(FACTORS | {"token": torch.ones(3)}, {"persres": entry()}))
    tensors, said = read_residual(path, frozenset(["token"]))
    assert set(tensors) == {*FACTORS, "token"} and said.phrase == "<v*> mug" and said.base.rare_token == "sks"


def test_eight_bit_floats_are_asked_for_nan_too(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}))
    with pytest.raises(PersresError, match="a holds NaN or infinity"):
        read_checked(path)


@pytest.mark.parametrize("ends", [["4", "8"], [0, None], [0, [8]]])
def test_places_that_are_no_numbers_are_one_sentence(tmp_path, ends):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": ends}}, bytes(8)))
    with pytest.raises(PersresError, match="its header is another's"):
        read_checked(path)
