"""Names, text, files and documents from outside."""

from __future__ import annotations

import os

import pytest
from pydantic import BaseModel, ConfigDict

from persres.errors import PersresError
from persres.untrusted.documents import parse_csv, parse_json, parse_yaml, read_file, read_json, read_yaml
from persres.untrusted.names import argument, digest, identifier, relative_name, relative_path
from persres.untrusted.text import markdown, printable, redacted


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    count: int = 0


BAD_PATHS = [
    "", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/.", "a\0b", "a\nb", "a\x1b[31m", "a\\b", "C:x", "x/C:\\y",
    "a/", "x" * 256, "a/" * 600 + "a", "é" * 200, "\u202ename", None, 5, ["a"], b"a",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_PATHS, ids=lambda text: repr(text)[:20])
def test_names_that_lead_elsewhere_are_refused(text, tmp_path):
    for check in (relative_path, lambda text: relative_name(text, tmp_path)):
        with pytest.raises(PersresError) as error:
            check(text)
        assert str(error.value).isprintable() and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text", ["a", "a/b.png", "at 10.00\u202fAM.png", "ünï/çode.txt", "a b", "..a", "a..", "-x", "x" * 255]
)
def test_plain_names_are_accepted(text, tmp_path):
    assert relative_name(text, tmp_path) == tmp_path / text


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "inside").mkdir()
    (root / "in").symlink_to(root / "inside")
    assert relative_name("in/x", root) == root / "in" / "x"
    with pytest.raises(PersresError, match="link that leads out"):
        relative_name("out/x", root)


@pytest.mark.parametrize("text", ["", "-x", "a\n", "a.b", "a/b", "é", "x" * 65, None, 7, "--cprofile-dump=/x", "_a"])
def test_what_is_no_identifier(text):
    with pytest.raises(PersresError, match="concept name"):
        identifier(text, "concept name")


@pytest.mark.parametrize(
    "text", ["a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n", "/dev/zero", "../" + "a" * 61, None, "g" * 64]
)
def test_what_is_no_digest(text):
    with pytest.raises(PersresError):
        digest(text)
    assert digest("a" * 64) == "a" * 64 and digest("0" * 32, "md5")


@pytest.mark.parametrize(
    ("text", "secrets", "stays"),
    [
        ("cannot reach https://zoe:s3cret@host/x", ["s3cret", "zoe"], "https://host/x"),
        ("postgresql://u:p@ss/w0rd@db:5432/x", ["p@ss", "w0rd"], "db:5432/x"),
        ("https://ghp_token@github.com/a/b", ["ghp_token"], "https://github.com/a/b"),
        ("GET https://b.s3/x?X-Amz-Signature=abc123&X-Amz-Credential=AKIA/x&partNumber=3", ["abc123", "AKIA"], "partNumber=3"),
        ("AWS_SECRET_ACCESS_KEY=abcdef0 set", ["abcdef0"], "AWS_SECRET_ACCESS_KEY=*** set"),
        ("password='hunter2' no", ["hunter2"], "no"),
        ("Authorization: Bearer abcdefghijkl", ["abcdefghijkl"], "Bearer ***"),
        ("sig=Zm9v&se=2026", ["Zm9v"], "se=2026"),
    ],
)  # fmt: skip
def test_secrets_are_removed(text, secrets, stays):
    assert stays in redacted(text) and not any(secret in redacted(text) for secret in secrets)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "s3://bucket/key#1",
        "a photo of a V* dog at home",
        "git@github.com:a/b.git",
        "file:///x/y@1.0",
    ],
)
def test_text_without_secrets_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x00", "\u202eabc", "\u200b", "\x9b31m", "\ud800", "a\rb", "\u2028"])
def test_terminal_escapes_are_not_printed(text):
    assert printable(text).isprintable() and "\\" in printable(text)


def test_long_text_is_cut():
    assert len(printable("x" * 1000)) == 300 and printable("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize(
    "text", ["<script>x</script>", "[a](http://x)", "![i](u)", "a|b", "# head", "`x`", "**b**", "a\n\n# h", "<!-- x"]
)
def test_markdown_is_literal(text):
    escaped = markdown(text)
    assert "\n" not in escaped and "<" not in escaped
    assert all(escaped[i - 1] == "\\" for i, c in enumerate(escaped) if c in "[]|#`*!")


BAD_JSON = [
    b"", b"{", b"[]", b"5", b"null", b'{"name": 5}', b'{"name": "a", "count": "x"}', b'{"name": "a", "other": 1}', b"\xff\xfe",
    b"[" * 100_000, b'{"a":' * 100_000, b'{"name": "\\ud800"}', b'{"name": "a", "count": 1e999}', b'{"name": "a"} x', b"\x00" * 100,
    b'{"name": "a", "count": ' + b"9" * 10_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json_is_one_sentence_with_the_file(data, tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(data)
    with pytest.raises(PersresError) as error:
        read_json(path, Row, "write it again")
    message = str(error.value)
    assert message.startswith(str(path)) and message.endswith("; write it again") and "\n" not in message


def test_the_field_is_named():
    with pytest.raises(PersresError, match=r"1\.count: Input should be a valid integer"):
        parse_json('[{"name": "a"}, {"name": "b", "count": "x"}]', list[Row], "x.json")
    with pytest.raises(PersresError, match="and 15 more"):
        parse_json("[" + ",".join(["{}"] * 20) + "]", list[Row], "x.json")
    assert parse_json('[{"name": "a"}]', list[Row], "x.json") == [Row(name="a")]


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = [
    "a: [", "a: &a [*a]", "a: &a\n  b: *a", LAUGHS, "[" * 5000, "- " * 3000 + "x", "a: 2001-99-99", "a: !!python/object/apply:os.system [x]",
    "a: \x00", "? [a]\n: b\n? {c: d}\n: e", "a: *b", "name: 5", "name: a\nextra: 1", "!!int 'x'", "\ta: b", "a: !!binary '='", "!!set {[1]}",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_bad_yaml_is_one_sentence_with_the_file(text, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(PersresError) as error:
        read_yaml(path, Row)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_aliases_and_merges_of_an_honest_file_are_read():
    text = "x: &x {name: a}\ny: {<<: *x, count: 2}\nz: [*x, *x]\n"
    assert parse_yaml(text, dict, "p") == {"x": {"name": "a"}, "y": {"name": "a", "count": 2}, "z": [{"name": "a"}] * 2}


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"other\n1\n", b"name,count\na,x\n", b'name\n"a', b"name,count\na,1\nb,2,3,4\n"],
    ids=range(6),
)
def test_bad_csv_is_one_sentence_with_the_file(data):
    with pytest.raises(PersresError, match=r"^t\.csv is not valid \("):
        parse_csv(data, Row, "t.csv")


def test_csv_of_honest_rows():
    table = parse_csv(b"name,count\na,1\nb,2\n", Row, "t.csv")
    assert table["count"].tolist() == [1, 2]


@pytest.mark.timeout(30)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "none", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(PersresError, match="replace or remove it"):
            read_file(path)
    with pytest.raises(PersresError, match="larger"):
        read_file(tmp_path / "large", most=99)
    assert len(read_file(tmp_path / "large", most=100)) == 100


@pytest.mark.parametrize(
    "text", ["", "-", "-x", "--upload-pack=touch x", "a\0b", "a\nb", "\x1b[31m", "a\x7f", None, 5, ["a"], b"a"]
)
def test_what_is_no_argument(text):
    with pytest.raises(PersresError, match=r"^version ") as error:
        argument(text, "version")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["v1", "a b", "ünï", "a-b", "/x", "main~1", "x;y"])
def test_arguments(text):
    assert argument(text) == text


@pytest.mark.parametrize("text", ["9" * 101, "0x" + "f" * 200, "1" + ":1" * 100])
def test_numbers_too_long_to_print_are_refused(text):
    with pytest.raises(PersresError, match="more than 100 digits"):
        parse_yaml(f"a: {text}", dict, "settings")


def test_a_table_needs_the_columns_of_its_model_and_keeps_text():
    for data in (b"count\n", b"count\n1\n", b"\0\n"):
        with pytest.raises(PersresError, match="no column name"):
            parse_csv(data, Row, "table.csv")
    assert parse_csv(b"name,count\n007,1\n", Row, "table.csv", text=("name",))["name"][0] == "007"
