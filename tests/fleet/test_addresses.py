"""Addresses of stores: a folder is a path and a prefix is a key, whatever characters they have; neither is a URL."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pytest

from persres.errors import PersresError
from persres.fleet import on_demand
from persres.fleet.on_demand import Request, personalize_from_store
from persres.fleet.store import open_store
from persres.untrusted.names import s3_address
from persres.versions.store import s3_remote
from tests.support.s3_server import BUCKET, Server, credentials

CHARACTERS = [
    "a#b", "a?b=c", "a%23b", "a%2Fb", "100%", "a b", " a ", "a+b", "a&b", "a;b", "a:b", "a@b", "é", "a\u202fb", "a'b\"c", "{a}[b]",
    "a^b`c|d~e", "<a>", "*", "$(a)", "-x", "..a", "a\\b",
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    served = Server()
    yield served
    served.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """A client of a bucket, whose credentials are in the environment."""
    open_store.cache_clear()
    for name, value in credentials(server.endpoint).items():
        monkeypatch.setenv(name, value)
    server.client().create_bucket(Bucket=BUCKET)
    return server.client()


def keys(client, prefix: str) -> list[str]:
    return sorted(one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", []))


@pytest.mark.parametrize("name", CHARACTERS)
def test_objects_land_exactly_below_the_prefix(bucket, tmp_path, name):
    (tmp_path / "file").write_bytes(b"a file")
    store, place = open_store(f"s3://{BUCKET}/{tmp_path.name}/{name}/"), f"{tmp_path.name}/{name}"
    store.upload(tmp_path / "file", f"{name}/x#y.png")
    assert store.write("new", b"1", only_new=True) and store.read("new") == b"1" and store.has("new")
    assert keys(bucket, f"{tmp_path.name}/") == sorted([f"{place}/new", f"{place}/{name}/x#y.png"])
    assert sorted(store.keys("")) == sorted(["new", f"{name}/x#y.png"])
    assert list(store.keys(f"{name}/")) == [f"{name}/x#y.png"]
    assert store.download(f"{name}/x#y.png", tmp_path / "copy") and (tmp_path / "copy").read_bytes() == b"a file"
    with urllib.request.urlopen(store.link(f"{name}/x#y.png")) as answer:
        assert answer.read() == b"a file"
    store.remove("new"), store.remove(f"{name}/x#y.png")
    assert keys(bucket, f"{tmp_path.name}/") == []


@pytest.mark.parametrize("name", CHARACTERS)
def test_files_land_exactly_in_the_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    open_store.cache_clear()
    for address in (str(tmp_path / name), name, f"./{name}/"):
        store = open_store(address)
        assert store.write(f"{name}/x#y", b"1") and store.read(f"{name}/x#y") == b"1"
        assert (tmp_path / name / name / "x#y").read_bytes() == b"1" and os.listdir(tmp_path) == [name]
        assert list(store.keys("")) == [f"{name}/x#y"]
        with urllib.request.urlopen(store.link(f"{name}/x#y")) as answer:
            assert answer.read() == b"1"
        store.remove(f"{name}/x#y")


@pytest.mark.parametrize("name", ["dog#7", "dog?7", "dog%207", "my dog", "a:b", "é"])
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_photos_are_read_and_results_land_where_the_request_says(bucket, tmp_path, monkeypatch, name, kind):
    """The folder whose name is cut at the character holds another's photos."""
    seen = []

    def personalize(photos, name, out, **options):
        seen.extend((path.name, path.read_bytes()) for path in sorted(photos.iterdir()))
        out.mkdir(parents=True)
        (out / f"{name}.safetensors").write_bytes(b"residual")
        return out

    monkeypatch.setattr(on_demand, "personalize", personalize)
    root = str(tmp_path) if kind == "folder" else f"s3://{BUCKET}/{tmp_path.name}"
    open_store(root).write(f"in/{name}/{name}#1?.jpg", b"mine")
    for other in {name[:3], name[0], "dog", "dog 7"} - {name}:
        open_store(root).write(f"in/{other}/{other}.jpg", b"another's")
    made = personalize_from_store(
        Request(f"{root}/in/{name}", f"{root}/out/{name}", "mug", profile="mini"), tmp_path / "w"
    )
    assert seen == [(f"{name}#1?.jpg", b"mine")] and made == ["mug/mug.safetensors"]
    assert list(open_store(root).keys("out/")) == [f"out/{name}/mug/mug.safetensors"]


@pytest.mark.parametrize(
    "address",
    [
        "gs://x/y", "http://host/x", "s3:/bucket/x", "s3:bucket/x", " S3:x", "s3://", "s3:///x", "s3://bu#cket/x", "s3://b?x=y/z",
        "s3://key:secret@bucket/x", "s3://a b/x", "s3://bucket/a//b", "s3://bucket//a", "s3://bucket/../x", "s3://bucket/./x",
        "s3://bucket/a\nb", "s3://bucket/a\0b", " gs://x", "file://host/x", "file:///a%20b", "file:///a#b", "", " ", "a\0b", "~/photos", "~",
    ],
)  # fmt: skip
def test_an_address_that_is_no_store_is_one_sentence(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PersresError) as error:
        open_store(address)
    text = str(error.value)
    assert text.isprintable() and "secret" not in text and ";" in text and not os.listdir(tmp_path)


def test_a_file_url_and_a_home_like_name_that_can_mean_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store(tmp_path.as_uri()).root == open_store(f"file:{tmp_path}").root == tmp_path.resolve()
    assert open_store("./~/x").root == Path("~/x").resolve() and open_store("~x").root == tmp_path.resolve() / "~x"


def test_an_object_without_a_usable_name_is_named_with_the_fix(bucket, tmp_path):
    place = tmp_path.name
    for key in (f"{place}/", f"{place}/a.jpg"):  # S3's console makes the first of a folder
        bucket.put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert list(open_store(f"s3://{BUCKET}/{place}").keys("")) == ["a.jpg"]
    for key in (f"{place}/a//b", f"{place}/../c", f"{place}/./d"):
        bucket.put_object(Bucket=BUCKET, Key=key, Body=b"")
        with pytest.raises(PersresError, match="remove or rename that object") as error:
            list(open_store(f"s3://{BUCKET}/{place}").keys(""))
        assert key in str(error.value)
        bucket.delete_object(Bucket=BUCKET, Key=key)


@pytest.mark.parametrize("name", CHARACTERS)
def test_a_dvc_remotes_prefix_is_the_one_that_dvc_uses(name):
    from dvc_s3 import S3FileSystem

    url = f"s3://bucket/a/{name}"
    remote = s3_remote({"core.remote": "s", "remote.s.url": url})
    assert f"{remote.bucket}/{remote.prefix}" == S3FileSystem._strip_protocol(url)
    assert remote.key("0" * 32) == f"{remote.prefix}/files/md5/00/{'0' * 30}"


def test_an_s3_address_in_parts():
    assert s3_address("S3://my.bucket-1/a/b") == ("my.bucket-1", "a/b") and s3_address("s3://bucket") == ("bucket", "")
