"""Files from strangers: each defect is one error message of one sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from persres.cli.main import main
from persres.errors import PersresError
from persres.residuals.file import load_residual
from persres.residuals.header import read_header
from persres.residuals.header_validation import read_checked

GOOD = save({"a": torch.ones(3, 4), "b": torch.zeros(5)}, {"format": "pt"})


def with_header(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


WRONG = {
    "empty": (b"", "it has 0 bytes"),
    "few bytes": (b"\x10\0\0", "it has 3 bytes"),
    "a length alone": ((2).to_bytes(8, "little"), r"not a readable safetensors file \(Expecting value"),
    "text": (b"not safetensors at all", r"its header would have"),
    "a web page": (b"<html>please log in</html>", r"its header would have"),
    "a pickle": (pickle.dumps({"a": 1}), "not a safetensors file but a pickle; persres reads nothing else"),
    "a ZIP": (b"PK\x03\x04 and so on, as torch writes", "ZIP archive"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "cut": (GOOD[:-7], r"is truncated: 7 of 68 bytes are missing"),
    "cut in the header": (GOOD[:40], r"not a readable safetensors file"),
    "too long": (GOOD + b"more", r"has 4 bytes after its end; do not trust it"),
    "a huge header": ((1 << 40).to_bytes(8, "little") + b"{}", r"its header would have 1,099,511,627,776 bytes"),
    "no JSON": ((9).to_bytes(8, "little") + b"{not json}", "not a readable safetensors file"),
    "no tensors' header": (with_header({"a": [1, 2]}), "its header has no data_offsets"),
    "a shape that lies": (
        with_header({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 8]}}, bytes(8)),
        "not a readable safetensors file",
    ),
    "a name twice": (
        (
            text
            := b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
        )
        and len(text).to_bytes(8, "little") + text + bytes(8),
        "its header has a name twice",
    ),
    "metadata twice": (
        (text := b'{"__metadata__":{"a":"1"},"__metadata__":{}}') and len(text).to_bytes(8, "little") + text,
        "its header has a name twice",
    ),
    "metadata of numbers": (with_header({"__metadata__": {"a": 1}}), "not a readable safetensors file"),
    "four bits": (with_header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"), "a is float4"),
    "complex NaN": (
        save({"a": torch.tensor([complex(float("nan"), 0)])}),
        "a is complex64, which persres does not read",
    ),
    "a type of nothing": (with_header({"a": {"dtype": "X", "shape": [], "data_offsets": [0, 0]}}), "not a readable"),
    "too many tensors": (
        with_header({f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}),
        "has 20,001 tensors",
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
    with pytest.raises(PersresError, match=r"no file .*none\.safetensors; train it first"):
        read_checked(tmp_path / "none.safetensors")


@pytest.mark.parametrize("reader", [read_checked, read_header, load_residual])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, reader):
    """A pipe without a writer would block for ever, a device has no end."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero"), tmp_path, tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(PersresError, match="is not a readable safetensors file"):
            reader(path)


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
    "none": (None, "not a persres residual; .*subject="),
    "no JSON": ("{", "its 'persres' entry is not valid .*JSON"),
    "too deep": ("[" * 100_000, "its 'persres' entry is not valid .*JSON"),
    "deep where it may be": (entry(more=json.loads("[" * 300 + "]" * 300)), "is not valid .*recursion limit"),
    "a list": ("[1]", r"its 'persres' entry is not valid .*object"),
    "null": ("null", "its 'persres' entry is not valid .*object"),
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
    "settings a list": (entry(settings=[]), r"no usable spec\.settings;"),
    "no settings": (entry(settings=None), r"no usable spec\.settings;"),
    "name_class a word": (entry(settings=SETTINGS | {"name_class": "never"}), r"spec\.settings\.name_class"),
    "a resolution that fills the memory": (entry(base={"resolution": 8_000_000_000}), r"no usable spec\.base"),
    "an empty V*": (entry(base={"token": ""}), r"no usable spec\.base"),
    "a V* with an escape": (entry(base={"token": "\x1b[31m"}), r"no usable spec\.base"),
    "a model with NUL": (entry(base={"model": "a\0b"}), r"no usable spec\.base"),
    "a long model": (entry(base={"model": "a" * 100_000}), r"no usable spec\.base"),
    "a class of two lines": (entry(macro_class="a\nb"), r"no usable spec\.macro_class"),
    "a concept with an escape": (entry(concept="\x1b[2J"), r"no usable spec\.concept"),
    "a class of half a character": (entry(macro_class="\ud800"), "is not valid .*hex escape"),
    "no target": (entry(settings=SETTINGS | {"target": None}), r"spec\.settings\.target"),
}


def odd(path, kind: str) -> str:
    """Writes a file with that header; returns the expected message."""
    text, message = HEADERS[kind]
    path.write_bytes(save(FACTORS, {} if text is None else {"persres": text}))
    return message


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_no_residual_has_is_one_sentence(tmp_path, kind):
    message = odd(tmp_path / "x.safetensors", kind)
    with pytest.raises(PersresError, match=message) as caught:
        load_residual(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["none", "a list", "no spec", "settings a list"])
def test_the_commands_print_the_message(tmp_path, kind, capsys):
    path = tmp_path / "x.safetensors"
    odd(path, kind)
    assert main(["generate", str(path), "--prompt", "a {}", "--out", str(tmp_path / "o")]) == 1
    assert main(["export", str(path), "--verify", "--out", str(tmp_path / "o")]) == 1
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("persres: ")]
    assert len(messages) == 2 and all("x.safetensors" in line for line in messages)


A, B = "unet.x.lora_A.weight", "unet.x.lora_B.weight"
TENSORS = {
    "another key": (FACTORS | {"unet.x.weight": torch.ones(2, 2)}, r"'unet\.x\.weight' \[2, 2\] is not a factor"),
    "no layer": (FACTORS | {"lora_A.weight": torch.ones(2, 2)}, "is not a factor"),
    "one factor": ({A: torch.ones(2, 3)}, "layer x has only its down factor"),
    "a vector": (FACTORS | {A: torch.ones(2)}, r"\[3, 2\] and \[2\], which make no matrix"),
    "an empty factor": ({A: torch.ones(0, 3), B: torch.ones(3, 0)}, r"\[0, 3\], which is no trained weight"),
    "two ranks": (FACTORS | {A: torch.ones(4, 3)}, "make no matrix"),
    "a convolution of 3×3": ({A: torch.ones(2, 3, 3, 3), B: torch.ones(3, 2, 1, 1)}, "make no matrix"),
    "nothing": ({}, "holds no factors"),
    "whole numbers": (
        {A: torch.ones(2, 3).int(), B: torch.ones(3, 2)},
        r"lora_A\.weight is int32 \[2, 3\], which is no trained",
    ),
    "truths": ({A: torch.ones(2, 3).bool(), B: torch.ones(3, 2)}, "is bool"),
    "a number": (FACTORS | {A: torch.tensor(1.0)}, "which make no matrix"),
    "V* of whole numbers": (FACTORS | {"token": torch.ones(3).int()}, "token is int32"),
    "V* of nothing": (FACTORS | {"token": torch.ones(0)}, r"token is float32 \[0\]"),
    "a factor twice": (FACTORS | {"x.lora_A.weight": torch.ones(2, 3)}, "has its down factor twice"),
    "V* a matrix": (FACTORS | {"token": torch.ones(2, 3)}, r"'token' \[2, 3\] is no embedding"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_no_residual_has_is_one_sentence(tmp_path, kind):
    tensors, message = TENSORS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, {"persres": entry()}))
    with pytest.raises(PersresError, match=rf"x\.safetensors.*{message}"):
        load_residual(path)


def test_a_residual_is_read_with_its_typed_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(FACTORS | {"token": torch.ones(3)}, {"persres": entry()}))
    residual = load_residual(path)
    assert set(residual.layers) == {"x"} and residual.layers["x"].rank == 2 and len(residual.token) == 3
    assert residual.header.phrase == "<v*> mug" and residual.header.base.rare_token == "sks"


def test_old_settings_are_read_under_their_new_names(tmp_path):
    path = tmp_path / "x.safetensors"
    old = {"prior_images": 2, "stop": "settled", "settle_every": 1, "class_source": "chosen"}
    path.write_bytes(save(FACTORS, {"persres": entry(settings=SETTINGS | old)}))
    header = load_residual(path).header
    new = {"num_class_images": 2, "stop": "early", "early_stop_every": 1, "class_source": "selected"}
    assert header.settings.model_dump().items() >= new.items() and not set(header.settings.model_dump()) & {
        "prior_images",
        "settle_every",
    }
    assert header.info["spec"]["settings"] == SETTINGS | old, "the entry itself is not rewritten"


def test_eight_bit_floats_are_checked_for_nan_too(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}))
    with pytest.raises(PersresError, match="a holds NaN or infinity"):
        read_checked(path)


@pytest.mark.parametrize("ends", [["4", "8"], [0, None], [0, [8]]])
def test_offsets_that_are_no_numbers_are_one_sentence(tmp_path, ends):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": ends}}, bytes(8)))
    with pytest.raises(PersresError, match="its header has no data_offsets"):
        read_checked(path)


def large_header(entries: dict[str, str], tensors: bytes = b"") -> bytes:
    return with_header({"__metadata__": entries} | json.loads(tensors or b"{}"))


@pytest.mark.parametrize(
    "entries",
    [
        {"ss_tag_frequency": json.dumps({"10_dog": {f'a tag, "quoted" {i}': i for i in range(200_000)}})},
        {"modelspec.thumbnail": "data:image/jpeg;base64," + "A" * (6 << 20)},
        {"ssmd_cover_images": json.dumps(["B" * (5 << 20), "C" * (4 << 20)]), "ss_bucket_info": "{}"},
    ],
    ids=["tags", "a thumbnail", "cover images"],
)
def test_a_header_with_megabytes_of_text_is_read(tmp_path, entries):
    """safetensors allows 100 MB; kohya writes every tag of every photo."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.ones(2)}, entries))
    tensors, metadata = read_checked(path)
    assert metadata == entries and tensors["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":' + b"[" * (3 << 20) + b"]" * (3 << 20) + b"}", "a header of .* that is not text"),
        (b'{"__metadata__":{' + b'"a":"b",' * 700_000 + b'"c":"d"}}', "a header of .* that is not text"),
        (b'{"a":"' + b"b" * (5 << 20), "a string in its header has no end"),
        (b'"' + b'"\\' * (3 << 20), "a string in its header has no end"),
    ],
    ids=["lists", "entries", "no end", "no end, escaped"],
)
def test_a_large_header_that_would_fill_the_memory_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(PersresError, match=message):
        read_checked(path)


@pytest.mark.parametrize("reader", [read_header, load_residual])
def test_a_huge_entry_that_would_be_parsed_is_refused(tmp_path, reader):
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        save(FACTORS, {"persres": json.dumps({"format": "persres-residual-1", "more": ["x"] * 1_000_000})})
    )
    with pytest.raises(PersresError, match=r"its 'persres' entry has .* characters; do not trust it"):
        reader(path)


@pytest.mark.parametrize("reader", [read_checked, read_header, load_residual])
def test_a_path_may_be_a_string(tmp_path, reader):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(FACTORS, {"persres": entry()}))
    assert reader(str(path))
    with pytest.raises(PersresError, match="no file none"):
        reader("none.safetensors")
