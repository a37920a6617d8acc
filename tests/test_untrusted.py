"""Files from strangers: one sentence each, and nothing of them is used."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save

from persres.errors import PersresError
from persres.runs.checkpoints import read_checked

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
