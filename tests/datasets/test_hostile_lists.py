"""Descriptions, lists and records of datasets as nobody should write them, and folders that systems add."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from persres.config.schema import Fetch
from persres.datasets import customconcept101, download, dreambooth, folder
from persres.datasets.layout import Concept, check_concept, check_name, read_concept, read_concepts, write_concept
from persres.datasets.wordnet import load_candidates
from persres.errors import PersresError
from persres.prompts import numbered
from persres.untrusted.documents import read_text

DEEP = "[" * 100_000
PLAIN = {"macro_class": "dog", "prompts": [["style", "a drawing of a {}"]]}
BAD_FIELDS = {
    "prompts as strings": ({"prompts": ["a photo of a {}"]}, "prompts.0"),
    "prompts as one string": ({"prompts": "a photo of a {}"}, "prompts"),
    "prompts as an object": ({"prompts": {"style": "a {}"}}, "prompts"),
    "a prompt of three": ({"prompts": [["style", "a {}", "x"]]}, "prompts.0"),
    "a prompt that is a number": ({"prompts": [["style", 5]]}, "prompts.0.1"),
    "no prompts": ({"prompts": []}, "prompts"),
    "prompts null": ({"prompts": None}, "prompts"),
    "a terminal escape": ({"prompts": [["style", "a {}\x1b[31m"]]}, "prompt"),
    "a very long prompt": ({"prompts": [["style", "a {}" + "x" * 10_000]]}, "prompt"),
    "broken Unicode": ({"prompts": [["style", "a {} \udcff"]]}, ""),
    "macro_class a number": ({"macro_class": 5}, "macro_class"),
    "macro_class a list": ({"macro_class": ["dog"]}, "macro_class"),
    "macro_class true": ({"macro_class": True}, "macro_class"),
    "macro_class null": ({"macro_class": None}, "macro_class"),
    "macro_class a path": ({"macro_class": "../../etc"}, "macro_class"),
    "macro_class absolute": ({"macro_class": "/etc/passwd"}, "macro_class"),
    "macro_class with braces": ({"macro_class": "dog {}"}, "macro_class"),
    "macro_class of two lines": ({"macro_class": "dog\ncat"}, "macro_class"),
    "macro_class with NUL": ({"macro_class": "dog\0"}, "macro_class"),
    "macro_class very long": ({"macro_class": "dog " * 100}, "macro_class"),
    "macro_class blank": ({"macro_class": " \t"}, "macro_class"),
    "category a number": ({"category": 1}, "category"),
    "category a control character": ({"category": "\x07"}, "category"),
    "licence a list": ({"licence": ["MIT"]}, "licence"),
    "licence an escape": ({"licence": "\x1b]0;x\x07"}, "licence"),
    "an unknown key with an escape": ({"\x1b[31m": 1}, "unknown keys"),
}
BAD_FILES = {
    "empty": b"", "a list": b"[1]", "a string": b'"dog"', "null": b"null", "deep": DEEP.encode(), "no UTF-8": b'{"macro_class": "\xff"}', "binary": bytes(99),
    "UTF-16": json.dumps(PLAIN).encode("utf-16"), "cut": b'{"macro_class": "dog"', "NaN": b'{"macro_class": NaN}', "huge number": b'{"macro_class": ' + b"9" * 5000 + b"}",
}  # fmt: skip


def described(tmp_path: Path, content: bytes) -> Path:
    place = tmp_path / "mydog"
    place.mkdir(exist_ok=True)
    (place / "concept.json").write_bytes(content)
    return place


def one_sentence(error: pytest.ExceptionInfo[PersresError], *parts: str) -> None:
    message = str(error.value)
    assert message.isprintable() and ";" in message and len(message) < 1500 and all(part in message for part in parts)


@pytest.mark.parametrize("kind", BAD_FIELDS)
def test_a_wrong_field_of_a_description_is_named(tmp_path, kind):
    change, field = BAD_FIELDS[kind]
    with pytest.raises(PersresError) as error:
        folder.describe(described(tmp_path, json.dumps(PLAIN | change).encode()))
    one_sentence(error, "concept.json", field)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_description_is_named(tmp_path, kind):
    place = described(tmp_path, BAD_FILES[kind])
    for read in (folder.describe, read_concept):
        with pytest.raises(PersresError) as error:
            read(place)
        one_sentence(error, "concept.json")


@pytest.mark.parametrize("place_of", ["pipe", "folder", "device"])
def test_a_description_that_is_no_file_does_not_block(tmp_path, place_of):
    path = described(tmp_path, b"") / "concept.json"
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[place_of](path)
    for read in (folder.describe, read_concept):
        with pytest.raises(PersresError, match="not a regular file"):
            read(path.parent)


def test_a_description_from_windows_is_read(tmp_path):
    text = json.dumps(PLAIN | {"category": "größe"}, ensure_ascii=False, indent=1)
    concept = folder.describe(described(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    assert concept.category == "größe" and concept.prompts == (("style", "a drawing of a {}"),)


@pytest.mark.parametrize(
    "change",
    [{"notes": 5}, {"notes": {"a": 1}}, {"notes": ["a"]}, {"licence": 5}, {"licence": None}, {"name": 5}, {"name": "../x"}, {"name": "a\n"}, {"category": None},
     {"prompts": "x"}, {"prompts": ["x"]}, {"prompts": None}, {"macro_class": 5}, {"extra": 1}, {"notes": {"a": "\x1b[31m"}}],
    ids=str,
)  # fmt: skip
def test_a_wrong_field_of_a_fetched_concept_is_named(tmp_path, change):
    write_concept(tmp_path, Concept("mug", "cup", "mug", (("style", "a {}"),), "MIT\nsecond line", {"source": "me"}))
    assert read_concept(tmp_path / "mug").notes == {"source": "me"}
    path = tmp_path / "mug" / "concept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PersresError) as error:
        read_concept(tmp_path / "mug")
    assert str(error.value).isprintable() and (next(iter(change)) in str(error.value) or "mug" in str(error.value))


@pytest.mark.parametrize("name", ["dog\n", "dog\0", "\x1b[31m", "a/../b", "é", "", ".", "-rf", "a" * 65, "__MACOSX"])
def test_names_that_are_no_concepts(name):
    with pytest.raises(PersresError, match="not usable"):
        check_name(name)
    with pytest.raises(PersresError, match="not usable"):
        check_concept(Concept(name, "a", "a", ()), Path("x"))


SYSTEM = ["__MACOSX", ".DS_Store", "@eaDir", ".ipynb_checkpoints", "lost+found", ".Trash-1000", "$RECYCLE.BIN", "System Volume Information", "#recycle", "__pycache__"]  # fmt: skip


def users_photos(root: Path, name: str = "mydog") -> Path:
    place = described(root, json.dumps(PLAIN).encode()).rename(root / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(place / "a.png")
    return place


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_that_systems_add_are_no_concepts(tmp_path, name):
    users_photos(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "dead").symlink_to("/nowhere")
    settings, root = Fetch(dataset="folder", folder=str(tmp_path)), tmp_path / "out" / "concepts"
    assert folder.size(settings) == (1, 1) and folder.fetch(settings, root) == 1
    (root / name).mkdir()
    assert [concept.name for concept, _ in read_concepts(root)] == ["mydog"]


@pytest.mark.parametrize("name", ["my dog", "café", "x\x1b[31m", "-x"])
def test_a_folder_that_is_no_concepts_name_is_named_before_the_work(tmp_path, name):
    users_photos(tmp_path, name)
    settings = Fetch(dataset="folder", folder=str(tmp_path))
    for work in (lambda: folder.fetch(settings, tmp_path / "out"), lambda: folder.size(settings)):
        with pytest.raises(PersresError, match="rename it") as error:
            work()
        one_sentence(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../photos", "/etc", "a/b", "..", ""])
def test_a_setting_names_no_folder_elsewhere(tmp_path, name):
    users_photos(tmp_path)
    settings = Fetch(dataset="folder", folder=str(tmp_path), concepts=(name,))
    for work in (lambda: folder.fetch(settings, tmp_path / "out"), lambda: folder.size(settings)):
        with pytest.raises(PersresError, match="not usable"):
            work()


ENTRY = {"instance_data_dir": "./benchmark_dataset/pet_cat1", "class_prompt": "cat", "prompt_filename": "prompts/cat.txt"}  # fmt: skip
BAD_LISTS = {
    "no list": {"a": 1}, "numbers": [1], "strings": ["pet_cat1"], "null": None, "no class": [{k: v for k, v in ENTRY.items() if k != "class_prompt"}],
    "class a number": [ENTRY | {"class_prompt": 5}], "folder a list": [ENTRY | {"instance_data_dir": []}], "folder up": [ENTRY | {"instance_data_dir": "a/.."}],
    "folder empty": [ENTRY | {"instance_data_dir": ""}], "folder with an escape": [ENTRY | {"instance_data_dir": "a/\x1b[31m"}], "twice": [ENTRY, ENTRY],
    "prompts elsewhere": [ENTRY | {"prompt_filename": "../../prompts/cat.txt"}], "prompts absolute": [ENTRY | {"prompt_filename": "/tmp/cat.txt"}],
    "prompts missing": [ENTRY | {"prompt_filename": "prompts/dog.txt"}], "class with braces": [ENTRY | {"class_prompt": "{}"}],
}  # fmt: skip


@pytest.fixture
def benchmark(tmp_path) -> Path:
    files = tmp_path / "files"
    (files / "prompts").mkdir(parents=True)
    (files / "prompts" / "cat.txt").write_text("\n".join(f"a {{}} number {i}" for i in range(20)))
    (files / "dataset.json").write_text(json.dumps([ENTRY]))
    (files / "benchmark_dataset").mkdir()
    users_photos(files / "benchmark_dataset", "pet_cat1")
    return files


def fetched(files: Path, out: Path) -> int:
    return customconcept101.fetch(Fetch(dataset="customconcept101", folder=str(files)), out)


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_wrong_list_of_the_benchmark_is_named(benchmark, tmp_path, kind):
    assert fetched(benchmark, tmp_path / "good") == 1
    (benchmark / "dataset.json").write_text(json.dumps(BAD_LISTS[kind]))
    with pytest.raises(PersresError) as error:
        fetched(benchmark, tmp_path / "out")
    assert str(error.value).isprintable() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"", bytes(2 << 20), b"a {}\n" * 19, b"a dog\n" * 20, b"a {}\x1b[31m\n" * 20]
)
def test_a_wrong_file_of_prompts_is_named(benchmark, tmp_path, content):
    (benchmark / "prompts" / "cat.txt").write_bytes(content)
    with pytest.raises(PersresError):
        fetched(benchmark, tmp_path / "out")
    (benchmark / "prompts" / "cat.txt").unlink()
    os.mkfifo(benchmark / "prompts" / "cat.txt")
    with pytest.raises(PersresError, match=r"cat\.txt cannot be read .*copy the repository's folder"):
        fetched(benchmark, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"'{0} {1}" * 100_000, bytes(100), b"x,y\nObject Prompts\nLive Subject Prompts\n"]
)
@pytest.mark.parametrize("name", ["prompts_and_classes.txt", "references_and_licenses.txt"])
def test_a_wrong_list_of_dreambooth_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    if name == dreambooth.LIST:
        with pytest.raises(PersresError, match="restore it"):
            dreambooth.read_list(tmp_path / name)
    elif len(content) > 10_000 or content == b"\xff":
        with pytest.raises(PersresError, match="restore it"):
            dreambooth._credits(tmp_path / name)
    else:
        assert dreambooth._credits(tmp_path / name) == {}


def test_a_list_with_windows_line_ends_is_read(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "x") == "a\nb\nc\n"


@pytest.mark.parametrize("content", [b"\xff\xfed\0o\0g\0", b"\n \n", b"dog\n\x1b[31mcat\n", b"dog" * 100])
def test_a_wrong_file_of_nouns_is_named(tmp_path, content):
    (tmp_path / "nouns.txt").write_bytes(content)
    with pytest.raises(PersresError, match=r"nouns\.txt"):
        load_candidates(str(tmp_path / "nouns.txt"))


BODY = b"an archive"


@pytest.mark.parametrize(
    "record", ["short", "g" * 64, "../" * 21 + "x", "\x1b[31m", "0" * 63 + "\u0661", "0" * 65, "sha256:" + "0" * 64]
)
def test_a_recorded_digest_that_is_none_is_named(tmp_path, record):
    (tmp_path / "a.zip").write_bytes(BODY)
    (tmp_path / "a.zip.sha256").write_text(f"{record}  a.zip\n")
    with pytest.raises(PersresError, match=r"a\.zip\.sha256: digest .* is not 64 hexadecimal digits; delete") as error:
        download.from_web("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")
    assert str(error.value).isprintable()


def test_records_and_archives_that_are_no_files_do_not_block(tmp_path):
    (tmp_path / "a.zip").write_bytes(BODY)
    record = tmp_path / "a.zip.sha256"
    record.write_bytes(b"\xff\xfe")
    with pytest.raises(PersresError, match="no UTF-8"):
        download.from_web("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(PersresError, match="not a regular file"):
        download.from_web("http://127.0.0.1:9/a.zip", tmp_path / "a.zip")
    record.unlink()
    os.mkfifo(tmp_path / "b.zip")
    (tmp_path / "c.zip").mkdir()
    for name in ("b.zip", "c.zip"):
        with pytest.raises(PersresError, match="is not a regular file; remove it"):
            download.from_web("http://127.0.0.1:9/x.zip", tmp_path / name)
    record.write_text(f"{hashlib.sha256(BODY).hexdigest().upper()}  a.zip\n")
    assert download.from_web("http://127.0.0.1:9/a.zip", tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.parametrize("address", ["http://me:s3cret@127.0.0.1:9/a.zip", "http://s3cret@127.0.0.1:9/a.zip?token=s3cret", "http://127.0.0.1:9/a.zip?X-Amz-Signature=s3cret"])  # fmt: skip
def test_an_error_and_the_log_have_no_password(tmp_path, logged, address):
    with pytest.raises(PersresError, match=r"cannot fetch http://127\.0\.0\.1:9/a\.zip") as error:
        download.from_web(address, tmp_path / "a.zip")
    assert "s3cret" not in str(error.value) + logged.text


REDIRECTS = [
    ("https://a/x", "https://b/y", ""), ("http://a/x", "http://b/y", ""), ("http://a/x", "https://b/y", ""), ("HTTPS://a/x", "https://b/y", ""),
    ("https://a/x", "http://b/y", "no https address"), ("https://a/x", "file:///etc/passwd", "no https address"), ("http://a/x", "file:///etc/passwd", "not on the web"),
    ("http://a/x", "ftp://b/y", "not on the web"), ("http://a/x", "javascript:0", "not on the web"), ("https://u:pw@a/x", "http://u:pw@b/y?token=pw", "no https address"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "target", "message"), REDIRECTS)
def test_a_redirect_leaves_neither_tls_nor_the_web(start, target, message):
    if not message:
        return download._check_redirect(start, target)
    with pytest.raises(PersresError, match=message) as error:
        download._check_redirect(start, target)
    assert "pw" not in str(error.value).replace("passwd", "")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "//\x1b[31m"])
def test_a_servers_redirect_is_checked_before_it_is_followed(server, tmp_path, monkeypatch, location):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", redirect)
    with pytest.raises(PersresError) as error:
        download.from_web(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert str(error.value).isprintable() and not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("length", ["many", "-5", "9" * 40])
def test_a_servers_odd_answer_is_one_clear_error(server, tmp_path, monkeypatch, length):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(b"x")

    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", answer)
    try:
        download.from_web(f"{server.url}/a.zip", tmp_path / "a.zip")
    except PersresError as error:
        assert "a.zip" in str(error) and [p.name for p in tmp_path.iterdir()] == []


def test_long_texts_take_no_time(tmp_path):
    """Searches that try every place again from every place take minutes here."""
    start = time.monotonic()
    assert numbered("!" * 100_000 + "a" + ">" * 100_000, 2) == "!" * 100_000 + "a2" + ">" * 100_000
    for line in ("'" + "{0} {1}" * 9000, "'{0} {1}'.format" * 4000, "a:\n \n" * 10_000, "a" * 60_000 + ":"):
        (tmp_path / "list.txt").write_text(f"Object Prompts\n{line}")
        with pytest.raises(PersresError):
            dreambooth.read_list(tmp_path / "list.txt")
        dreambooth._credits(tmp_path / "list.txt")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("token", ["<v*>", "v", "", "***", "<é_1>\n", "²"])
def test_a_tokens_number_stands_behind_its_last_letter(token):
    assert numbered(token, 2) == re.sub(r"(\W*)$", r"2\1", token, count=1)
