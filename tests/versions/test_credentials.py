"""The user's remote: one client with the remote's profile and files, and no secret in any message."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64encode
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from persres import doctor
from persres.cli.main import main
from persres.errors import PersresError
from persres.versions import git_dvc, publish
from persres.versions.git_dvc import CommandError, configuration, git
from persres.versions.publish import Plan, default_remote
from persres.versions.store import LONGEST, check_health, link, s3_remote
from persres.versions.tracked import StoredFile
from tests.support.stranger import Listener, settings

FILE = """[default]
aws_access_key_id = KEYOFDEFAULT
aws_secret_access_key = hunter2
[team]
aws_access_key_id = KEYOFTEAM
aws_secret_access_key = hunter2
"""
URL = {"core.remote": "store", "remote.store.url": "s3://bucket/team#1"}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> Path:
    """Credentials of a default and of a profile ``team`` in ``keys``; none elsewhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "keys").write_text(FILE)
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    (tmp_path / "home" / ".aws" / "credentials").write_text(FILE.replace("KEYOF", "HOMEOF"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def remote_with(**options: str):
    return s3_remote(URL | {f"remote.store.{key}": value for key, value in options.items()})


def key_used(remote) -> str:
    """The access key of a request of this remote's client."""
    signed = remote.client().generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    return parse_qs(urlsplit(signed).query)["X-Amz-Credential"][0].partition("/")[0]


CHOICES = [
    ({}, "HOMEOFDEFAULT"),
    ({"profile": "team"}, "HOMEOFTEAM"),
    ({"credentialpath": "keys"}, "KEYOFDEFAULT"),
    ({"credentialpath": "keys", "profile": "team"}, "KEYOFTEAM"),
    ({"access_key_id": "KEYOFCONFIG", "secret_access_key": "hunter2"}, "KEYOFCONFIG"),
    ({"profile": "team", "ssl_verify": "false", "use_ssl": "False", "region": "eu-west-1"}, "HOMEOFTEAM"),
]


@pytest.mark.parametrize(("options", "key"), CHOICES)
def test_the_remotes_credentials_are_used_and_reported(files, monkeypatch, options, key):
    assert key_used(remote_with(**options)) == key
    monkeypatch.setattr(
        git_dvc, "configuration", lambda folder: URL | {f"remote.store.{k}": v for k, v in options.items()}
    )
    says = doctor._credentials(files).says
    assert says.startswith(f"…{key[-4:]}") and "hunter2" not in says
    assert ("profile team" in says) == ("profile" in options) and ("keys" in says.partition("from")[2]) == (
        "credentialpath" in options
    )


def test_the_environment_wins_over_credentialpath_as_in_dvc(files, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files / "home" / ".aws" / "credentials"))
    assert key_used(remote_with(credentialpath="keys")) == "HOMEOFDEFAULT"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYOFENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert key_used(remote_with()) == "KEYOFENVIRONMENT" and key_used(remote_with(profile="team")) == "HOMEOFTEAM"


def test_the_configuration_of_dvc_is_read(files):
    """A relative credentialpath is relative to the file that names it; the health check signs with its key."""
    listener = Listener()
    git(files, "init", "-q")
    (files / ".dvc").mkdir()
    (files / ".dvc" / "config").write_text(settings(listener.endpoint, credentialpath="../keys", profile="team"))
    with pytest.raises(CommandError):  # it answers 404
        check_health(s3_remote(configuration(files)))
    assert "KEYOFTEAM" in json.dumps(listener.seen)
    listener.stop()


WRONG_REMOTES = [
    {"profile": "nobody"}, {"profile": "\x1b[31m"}, {"credentialpath": "binary"}, {"credentialpath": "."}, {"configpath": "binary"}, {"region": "a b/c"},
    {"endpointurl": "nothing"}, {"endpointurl": "http://"}, {"endpointurl": "file:///etc"}, {"endpointurl": "http://user:hunter2@127.0.0.1:9"},
    {"url": "s3://"}, {"url": "s3://a b/c"}, {"url": "s3://../x"}, {"ssl_verify": "/nowhere"}, {"access_key_id": "x"}, {"secret_access_key": "hunter2"},
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    WRONG_REMOTES,
    ids=lambda options: " ".join(options.items().__iter__().__next__()).encode("unicode_escape").decode(),
)
def test_doctor_says_what_is_wrong_with_a_remote(files, monkeypatch, options):
    (files / "binary").write_bytes(b"\xff\xfe[\x00")
    monkeypatch.setattr("persres.versions.store.TIMEOUT", 1)
    used = {"endpointurl": "http://127.0.0.1:9"} | options
    monkeypatch.setattr(
        git_dvc, "configuration", lambda folder: URL | {f"remote.store.{k}": v for k, v in used.items()}
    )
    checked = doctor._remote(files)
    assert checked.state == "fails" and checked.fix and (checked.says + checked.fix).isprintable()
    assert "hunter2" not in checked.says + checked.fix + doctor._credentials(files).says


SERVERS = [
    "http://user:hunter2@127.0.0.1:9/api", "http://user:hunter2@127.0.0.1:x/api", "http://hunter2@127.0.0.1:9/api", "http://u:hun/ter2@127.0.0.1:9/api",
    "http://127.0.0.1:9/api?token=hunter2", "file:///etc/passwd", "ftp://user:hunter2@127.0.0.1/x", "nothing", "http://", "http://[::1", "http://a b/", "http://\x1b[31m:9/",
    "http://127.0.0.1:99999/", "http://é\u202e.example:x/",
]  # fmt: skip


@pytest.mark.parametrize("address", SERVERS, ids=lambda text: text.encode("unicode_escape").decode())
def test_doctor_prints_no_password_of_a_server(files, monkeypatch, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    finding = doctor._server(files)
    text = doctor.as_text([finding]) + doctor.as_json([finding])
    assert finding.state == "fails" and "ter2" not in text and text.replace("\n", "").isprintable()


def test_doctor_asks_a_server_with_its_password_and_survives_any_answer(files, monkeypatch):
    listener = Listener()
    listener.objects["/api/health"] = b"true"
    monkeypatch.setenv("PREFECT_API_URL", listener.endpoint.replace("http://", "http://user:hunter%402@") + "/api/")
    finding = doctor._server(files)
    assert finding.state == "ok" and "hunter" not in finding.says
    assert listener.seen[0]["authorization"] == f"Basic {b64encode(b'user:hunter@2').decode()}"
    listener.stop()
    with socket.create_server(("127.0.0.1", 0)) as odd:
        threading.Thread(target=lambda: odd.accept()[0].sendall(b"SSH-2.0-x\r\n\r\n"), daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{odd.getsockname()[1]}")
        assert doctor._server(files).state == "fails"


PASSWORDS = [
    "https://user:hunter2@h/x",
    "ssh://u:hunter2@h/x",
    "https://h/x?sig=hunter2&y=1",
    "s3://b/x?X-Amz-Signature=hunter2",
    "azure://x?access_key=hunter2",
]


@pytest.mark.parametrize("url", PASSWORDS)
def test_a_plan_prints_no_password_and_a_committed_one_is_refused(files, url):
    remote = default_remote({"core.remote": "store", "remote.store.url": url})
    plan = Plan(
        "v1", remote, "origin", "main", ["abc \x1b]0;title\x07 \u202esubject"], ["data/\x1b[31mx"], ["v1"], 1, 1
    )
    assert "hunter2" not in plan.text() + plan.as_json() and plan.text().replace("\n", "").isprintable()
    (files / ".dvc").mkdir()
    (files / ".dvc" / "config").write_text(settings("http://h", url=url))
    with pytest.raises(PersresError, match=r"holds a secret.*url") as error:
        publish._check_secrets(files)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[core", "\0", "[[a]]\nb = c", "['remote \"a\"']\nurl = 'x\n", "\ufeff=", "a = %(a)s"]
)
def test_a_broken_configuration_of_the_checkout_is_one_sentence(files, text):
    (files / ".dvc").mkdir()
    (files / ".dvc" / "config").write_text(text)
    try:
        publish._check_secrets(files)
    except PersresError as error:
        assert ".dvc/config is not valid" in str(error) and str(error).isprintable()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), LONGEST + 1])
def test_a_link_has_a_lifetime(seconds):
    with pytest.raises(PersresError, match="a link lives"):
        link(remote_with(), StoredFile("a", "0" * 32), seconds)


@pytest.mark.parametrize("hours", ["nan", "inf", "-1", "0"])
def test_the_hours_of_a_link_are_a_number(files, hours, capsys):
    assert main(["link", "dog7", f"--hours={hours}"]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_key_of_the_remote_is_no_url():
    assert remote_with().prefix == "team#1" and remote_with().bucket == "bucket"
    assert remote_with().key("ab" * 16) == f"team#1/files/md5/ab/{'ab' * 15}"


def test_a_module_of_the_folder_is_not_run_as_dvc(files):
    """``python -m`` would run ./dvc.py of the folder in which doctor is called."""
    (files / "dvc.py").write_text("open('ran', 'w')")
    (files / "logging.py").write_text("open('ran', 'w')")
    assert "core.remote" not in configuration(files)
    assert not (files / "ran").exists()
