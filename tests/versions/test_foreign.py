"""Repositories of strangers: no name, digest, address or setting of theirs is run, written to or trusted with credentials."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path

import pytest

from persres.cli.main import main
from persres.errors import PersresError
from persres.versions.compare import differences
from persres.versions.git_dvc import git
from persres.versions.git_url import git_url
from persres.versions.repository import Repository
from persres.versions.tracked import tracked_files
from tests.support.stranger import (
    CONTENT,
    PARAMS,
    Listener,
    commit,
    listing_of,
    lock_of,
    make_repository,
    md5,
    settings,
)

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIDOFTHEUSER",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "AWS_SESSION_TOKEN": "TOKENOFTHEUSER",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder of work, outside of any checkout, with credentials in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> tuple[Path, Listener]:
    """A repository whose v1 has one residual, on a listener."""
    server, folder = Listener(), tmp_path_factory.mktemp("template") / "theirs"
    listing = listing_of([{"md5": server.hold(CONTENT), "relpath": "ours/dog7.safetensors"}])
    lock = lock_of(server.hold(listing, ".dir") + ".dir")
    make_repository(folder, **{"dvc.lock": lock, "params.yaml": PARAMS, ".dvc__config": settings(server.endpoint)})
    yield folder, server
    server.stop()


@pytest.fixture
def listener(template):
    """The template's, as if new."""
    server = template[1]
    objects, server.seen, server.status, server.location = dict(server.objects), [], 404, ""
    yield server
    server.objects = objects


@pytest.fixture
def stranger(template, listener, tmp_path) -> Path:
    """A copy of the template."""
    return Path(shutil.copytree(template[0], tmp_path / "theirs"))


def url(folder: Path) -> str:
    return f"file://{folder}"


def refused(capsys, *arguments: str) -> str:
    """The one sentence of a command that fails."""
    capsys.readouterr()
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("persres: ")]
    assert len(lines) == 1 and lines[0].isprintable()
    return lines[0]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


OPTION_TAGS = ["--cprofile-dump={place}/dump", "-x", "--output={place}/dump", "v1;touch", "$(touch)", "other@v1.0.0", "ns/v9", "v9…"]  # fmt: skip


@pytest.mark.parametrize("address", [str, url])
def test_tags_that_are_no_versions_are_dropped(stranger, place, address):
    head = git(stranger, "rev-parse", "HEAD").strip()
    for tag in OPTION_TAGS:
        git(stranger, "update-ref", f"refs/tags/{tag.format(place=place)}", head)
    repository = Repository(address(stranger))
    assert repository.versions() == ["v1"] and repository.newest() == "v1"
    assert main(["pull", "dog7", "--repo", address(stranger)]) == 0
    assert files_of(place) == ["dog7.safetensors"] and Path("dog7.safetensors").read_bytes() == CONTENT


def test_tags_that_are_no_text_are_dropped(stranger):
    head = git(stranger, "rev-parse", "HEAD").strip()
    with (stranger / ".git" / "packed-refs").open("ab") as refs:
        refs.write(
            b"".join(
                f"{head} refs/tags/".encode() + name + b"\n" for name in (b"v\xff", b"\xc3\x28", b"v\xe2\x80\xae2")
            )
        )
    assert Repository(str(stranger)).versions() == ["v1"]


ADDRESSES = [
    "--upload-pack=touch {place}/ran;", "-u", "-", "", "ext::sh -c touch% {place}/ran", "EXT::sh", "fd::17", "git-remote-x::y", "transport::http://x",
    "ssh://-oProxyCommand=touch {place}/ran/x", "ssh://user@-oProxyCommand=x/y", "user@-oProxyCommand=touch {place}/ran:x", "a\nb", "a\0b", "a\x1b[31m",
    "gopher://x/y", "javascript://x", "data://x",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda text: repr(text)[:20])
def test_an_address_that_is_an_option_or_a_command_is_refused(address, place, capsys):
    with pytest.raises(PersresError):
        git_url(address.format(place=place))
    if address:
        message = refused(capsys, "pull", "dog7", f"--repo={address.format(place=place)}")
        assert "repository" in message and files_of(place) == []


@pytest.mark.parametrize(
    "address",
    ["https://github.com/a/b", "http://u:p@h:8080/a.git", "ssh://git@h:22/a", "git@github.com:a/b.git", "file:///a b", "/a/b", "[::1]:a", "host:path"],
)  # fmt: skip
def test_addresses_of_git_are_accepted(address):
    assert git_url(address) == address


REVISIONS = ["--output=ran", "-1", "--", "v1\n", "v1\0", "\x1b[31m", "v1..v1", "../v1", "v1:params.yaml", "nothing"]


@pytest.mark.parametrize("address", [str, url])
def test_a_revision_that_is_none_is_refused(stranger, place, capsys, address):
    repository = Repository(address(stranger))
    for rev in REVISIONS:
        for read in (
            lambda rev: repository.text(rev, "params.yaml"),
            lambda rev: repository.files(rev, "data/learned"),
        ):
            with pytest.raises(PersresError, match="version"):
                read(rev)
    assert "version" in refused(capsys, "list", f"--rev={REVISIONS[0]}", f"--repo={address(stranger)}")
    assert files_of(place) == []


@pytest.mark.parametrize("name", ["-x", "--jobs=1", "a\nb", "nothing", "store\0"])
def test_a_remote_that_is_none_is_refused(stranger, place, capsys, name):
    assert (
        "remote" in refused(capsys, "pull", "dog7", f"--repo={stranger}", f"--remote={name}") and files_of(place) == []
    )
    assert files_of(place) == []


NO_DIGESTS = [
    "/dev/zero",
    "../../../x",
    "..",
    "",
    "a" * 31,
    "a" * 33,
    "A" * 32,
    "a" * 31 + "\n",
    "g" * 32,
    "--output=x",
    None,
    5,
    ["a"],
    "é" * 32,
]


class Files:
    """A snapshot of these files."""

    def __init__(self, **files: str) -> None:
        self.files = {name.replace("__", "/"): text for name, text in files.items()}

    def paths(self) -> list[str]:
        return list(self.files)

    def text(self, path: str) -> str:
        return self.files[path]


@pytest.mark.parametrize("digest", NO_DIGESTS, ids=lambda value: repr(value)[:15])
def test_a_digest_that_is_none_is_no_path(digest):
    """In dvc.lock of a folder and of a file, a .dvc file, the listing of a folder."""
    folder = f"{digest}.dir" if isinstance(digest, str) else digest
    out = json.dumps({"outs": [{"path": "learned", "hash": "md5", "md5": folder}]})
    for snapshot in (
        Files(**{"dvc.lock": lock_of(folder)}),
        Files(**{"dvc.lock": lock_of(digest, "data/learned/ours/dog7.safetensors")}),
        Files(**{"data__learned.dvc": out}),
    ):
        with pytest.raises(PersresError):
            tracked_files(snapshot, "data/learned", lambda md5: pytest.fail("it was read"))
    listing = listing_of([{"md5": digest, "relpath": "ours/dog7.safetensors"}])
    with pytest.raises(PersresError, match=r"listing of data/learned|digest of data/learned/ours/dog7"):
        tracked_files(Files(**{"dvc.lock": lock_of("a" * 32 + ".dir")}), "data/learned", lambda md5: listing)


@pytest.mark.parametrize(("digest", "name"), [("/dev/zero", "dog7"), ("../../../x", "dog7"), (md5(CONTENT), "../dog7"), (md5(CONTENT), "/tmp/dog7")])  # fmt: skip
def test_a_listing_that_leads_elsewhere_writes_nothing(stranger, listener, tmp_path, place, capsys, digest, name):
    listing = listing_of([{"md5": digest, "relpath": f"{name}.safetensors"}])
    commit(stranger, "v2", **{"dvc.lock": lock_of(listener.hold(listing, ".dir") + ".dir")})
    refused(capsys, "pull", "dog7", f"--repo={url(stranger)}")
    assert files_of(place) == [] and not (tmp_path / "cache").exists()


NO_NAMES = ["../dog7.safetensors", "/tmp/dog7.safetensors", "a/../../dog7.safetensors", "", "a//b.safetensors", "\x1b[31m.safetensors", "a\0b", "C:\\x", "x" * 300, None, 5]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda value: repr(value)[:15])
def test_a_name_in_a_listing_stays_in_its_folder(name):
    listing = listing_of([{"md5": md5(CONTENT), "relpath": name}])
    for lock in (lock_of("a" * 32 + ".dir"), lock_of(md5(CONTENT), f"data/learned/{name}")):
        if "dir" not in lock and name in (None, 5):
            continue
        with pytest.raises(PersresError):
            tracked_files(Files(**{"dvc.lock": lock}), "data/learned", lambda digest: listing)


BROKEN_LISTINGS = [
    b"",
    b"{}",
    b"[1]",
    b"[[]]",
    b"null",
    b'[{"relpath": "x"}]',
    b"\xff\xfe",
    b"[" * 100_000,
    b'[{"md5": NaN, "relpath": {}}]',
]


@pytest.mark.parametrize("data", BROKEN_LISTINGS, ids=lambda data: repr(data)[:15])
def test_a_broken_listing_is_one_sentence(data):
    with pytest.raises(PersresError, match="listing of data/learned") as error:
        tracked_files(Files(**{"dvc.lock": lock_of("a" * 32 + ".dir")}), "data/learned", lambda md5: data)
    assert str(error.value).isprintable()


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))  # fmt: skip
BROKEN_YAML = [
    "[",
    "- a",
    "5",
    "\0",
    "[" * 5000,
    BOMB,
    "!!python/object/apply:os.system ['touch ran']",
    "a: &a {a: *a}",
]
WRONG_TYPES = {
    "dvc.lock": ["stages: 5", "stages: {a: 5}", "stages: {a: {outs: {}}}", "stages: {a: {outs: [{path: 5}]}}"],
    "data__learned.dvc": ["outs: 5", "outs: [5]", "outs: [{}]"],
    "params.yaml": ["profile: 5", "profile: x", "profile: x\nx: 5", "tiny: {}"],
    "dvc.yaml": ["stages: 5", "stages: [a]", "artifacts: {a: 5}"],
}


@pytest.mark.parametrize("file", WRONG_TYPES)
def test_a_broken_file_is_one_sentence(stranger, place, capsys, file):
    for number, text in enumerate(BROKEN_YAML + WRONG_TYPES[file], 2):
        commit(stranger, f"v{number}", **{file: text})
        repository, name = Repository(str(stranger)), file.replace("__", "/")
        with pytest.raises(PersresError, match=name) as error:
            differences("v1", f"v{number}", repository) if file == "params.yaml" else repository.files(
                f"v{number}", "data/learned"
            )
        assert len(str(error.value)) < 1500 and str(error.value).isprintable()
    assert name in refused(
        capsys,
        "list" if file != "params.yaml" else "diff",
        *(["--rev=v2"] if file != "params.yaml" else ["v2", "v2"]),
        f"--repo={stranger}",
    )
    assert files_of(place) == []


@pytest.mark.parametrize(
    "loop", ["foreach: [1]", "matrix: {a: [1], b: [2]}", "cmd: x", "frozen: true\n    wdir: ../.."]
)
def test_stages_of_a_stranger_are_not_evaluated(stranger, place, loop):
    """Neither loops, templates, variables nor settings of DVC: it is not run."""
    text = f"vars: [{'{a: 1}'}, /dev/zero]\nstages:\n  train:\n    {loop}\n    do: {{cmd: touch ran}}\n"
    commit(stranger, "v2", **{"dvc.yaml": text, ".dvcignore": "(" * 100})
    assert main(["pull", "dog7", "--rev=v2", f"--repo={stranger}"]) == 0
    assert files_of(place) == ["dog7.safetensors"]


def test_a_stage_that_was_removed_has_no_files(stranger):
    commit(stranger, "v2", **{"dvc.yaml": "stages: {other: {cmd: x}}"})
    with pytest.raises(PersresError, match="data/learned does not exist"):
        Repository(str(stranger)).files("v2", "data/learned")


def sent(listener) -> str:
    return json.dumps(listener.seen)


FOREIGN_SETTINGS = [
    {}, {"profile": "team"}, {"credentialpath": "{home}/keys"}, {"access_key_id": "x", "secret_access_key": "y"}, {"configpath": "{home}/config"},
    {"url": "{endpoint}/bucket/team"}, {"url": "{endpoint}/bucket/team", "auth": "basic", "user": "u", "ask_password": "true"},
    {"region": "us-east-1", "use_ssl": "false", "session_token": "mine", "read_timeout": "100000"},
]  # fmt: skip


@pytest.mark.parametrize("more", FOREIGN_SETTINGS, ids=lambda more: ",".join(more) or "plain")
@pytest.mark.parametrize("address", [str, url])
def test_a_strangers_server_gets_no_credentials(stranger, listener, tmp_path, monkeypatch, place, address, more):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / ".netrc").write_text("default login AKIDOFTHEUSER password wJalrXUtnFEMI\n")
    (home / "keys").write_text("[default]\naws_access_key_id = AKIDOFTHEUSER\naws_secret_access_key = x\n")
    values = {key: value.format(home=home, endpoint=listener.endpoint) for key, value in more.items()}
    commit(stranger, "v2", **{".dvc__config": settings(listener.endpoint, **values)})
    assert main(["pull", "dog7", f"--repo={address(stranger)}"]) == 0
    assert files_of(place) == ["dog7.safetensors"] and listener.seen
    assert all(
        name not in headers for headers in listener.seen for name in ("authorization", "x-amz-security-token", "cookie")
    )
    assert not [value for value in (*KEYS.values(), "mine") if value != "us-east-1" and value in sent(listener)]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_credentials_is_named_with_the_option(stranger, listener, place, capsys, status):
    listener.objects.clear()
    listener.status = status
    message = refused(capsys, "pull", "dog7", f"--repo={url(stranger)}")
    assert "no credentials were sent" in message and "--remote store" in message and listener.endpoint in message
    assert "neither your checkout nor a git remote of it" in message


@pytest.mark.parametrize("place_of", ["ssh://h/x", "azure://c/p", "gs://b/p", "gdrive://x", "webdavs://h/x", "oss://b", "hdfs://h/x", "remote://store/x", "nothing://x"])  # fmt: skip
def test_remotes_that_only_credentials_open_are_refused(stranger, place, capsys, place_of):
    commit(stranger, "v2", **{".dvc__config": settings("", url=place_of)})
    message = refused(capsys, "pull", "dog7", f"--repo={stranger}")
    assert "no credentials were sent" in message and "--remote store" in message and files_of(place) == []


@pytest.mark.parametrize("endpoint", ["file:///etc", "ftp://x/y", "nothing", "http://", "http://a b/", "http://[::1", "http://h:port", "http://\x1b[31m/"])  # fmt: skip
def test_an_endpoint_that_is_none_is_one_sentence(stranger, place, capsys, endpoint):
    commit(stranger, "v2", **{".dvc__config": settings(endpoint)})
    refused(capsys, "pull", "dog7", f"--repo={stranger}")
    assert files_of(place) == []


@pytest.mark.parametrize("text", ["", "[core", "[core]\nremote = store", "\0", "[core]\nremote = store\n[['a']]", "['remote \"store\"']\nurl = %(url)s\n[core]\nremote=store", "\ufeff[x]", "=", "[core]\nremote = -x"])  # fmt: skip
def test_a_broken_configuration_is_one_sentence(stranger, place, capsys, text):
    commit(stranger, "v2", **{".dvc__config": text})
    refused(capsys, "pull", "dog7", f"--repo={url(stranger)}")
    assert files_of(place) == []


def test_credentials_go_where_the_user_says(stranger, listener, tmp_path, monkeypatch, place):
    """To a remote by --remote, to a server by --endpoint, to the checkout's, of which the repository may be a git remote."""
    other = Listener()
    other.objects = dict(listener.objects)
    assert main(["pull", "dog7", f"--repo={url(stranger)}", "--remote", "store"]) == 0
    assert "AKIDOFTHEUSER" in sent(listener) and "TOKENOFTHEUSER" in sent(listener)
    listener.seen.clear()
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "second"))
    assert main(["pull", "dog7", f"--repo={url(stranger)}", "--endpoint", other.endpoint]) == 0
    assert "AKIDOFTHEUSER" in sent(other) and not listener.seen
    git(tmp_path, "clone", "-q", url(stranger), "mine")
    (tmp_path / "mine" / ".dvc" / "config").write_text(settings(other.endpoint))
    monkeypatch.chdir(tmp_path / "mine")
    for number, where in enumerate((".", str(tmp_path / "mine"), f"{url(stranger)}/")):
        other.seen.clear()
        monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / f"own{number}"))
        assert main(["pull", "dog7", f"--repo={where}", "--out", "out"]) == 0
        assert "AKIDOFTHEUSER" in sent(other) and not listener.seen, where
    other.stop()


def test_a_web_server_gets_a_password_only_with_the_option(stranger, listener, place):
    address = f"{listener.endpoint}/bucket/team"
    text = settings("", url=address, auth="basic", user="u", password="secret")
    commit(stranger, "v2", **{".dvc__config": text})
    assert main(["pull", "dog7", f"--repo={stranger}", "--remote", "store"]) == 0
    assert "authorization" in listener.seen[-1] and files_of(place) == ["dog7.safetensors"]


def test_an_option_as_an_address_runs_nothing_in_a_checkout(stranger, place):
    """There git has a remote to which it would apply the option."""
    git(place, "init", "-q")
    git(place, "remote", "add", "origin", url(stranger))
    assert main(["list", f"--repo=--upload-pack=touch {place}/ran;git-upload-pack"]) == 1
    assert not (place / "ran").exists()


def test_cards_are_a_page_and_a_picture(stranger, listener, place):
    """Not a file that replaces the residual, nor a program."""
    names = ["dog7.md", "dog7.png", "dog7.safetensors", "dog7.py", "dog7", "dog7.md.sh"]
    listing = listing_of([{"md5": listener.hold(name.encode()), "relpath": f"ours/{name}"} for name in names])
    outs = json.loads(lock_of(listener.hold(listing, ".dir") + ".dir", "data/cards"))["stages"]["train"]
    lock = json.loads((stranger / "dvc.lock").read_text())
    lock["stages"]["cards"] = outs
    commit(stranger, "v2", **{"dvc.lock": json.dumps(lock)})
    assert main(["pull", "dog7", f"--repo={url(stranger)}"]) == 0
    assert files_of(place) == ["dog7.md", "dog7.png", "dog7.safetensors"]
    assert Path("dog7.safetensors").read_bytes() == CONTENT


def test_the_cache_of_a_folder_is_used_and_checked(stranger, listener, place, monkeypatch, tmp_path):
    """Also where the user's checkout has it elsewhere."""
    objects = {path.partition("/files/md5/")[2]: data for path, data in listener.objects.items()}
    listener.objects.clear()
    for root in (stranger / ".dvc" / "cache", tmp_path / "elsewhere"):
        for key, data in objects.items():
            path = root / "files" / "md5" / key
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        assert main(["pull", "dog7", f"--repo={stranger}"]) == 0
        shutil.rmtree(tmp_path / "cache")
        shutil.rmtree(root) if root == stranger / ".dvc" / "cache" else None
        (stranger / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path}/elsewhere\n")
        monkeypatch.chdir(stranger)
    (tmp_path / "elsewhere" / "files" / "md5" / md5(CONTENT)[:2] / md5(CONTENT)[2:]).write_bytes(b"other")
    assert main(["pull", "dog7"]) == 1


def test_what_a_killed_pull_left_goes_with_the_next(stranger, place, tmp_path):
    left = tmp_path / "cache" / "files" / md5(CONTENT)[:2] / ".pull-abandoned"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"half")
    assert main(["pull", "dog7", f"--repo={url(stranger)}"]) == 0
    assert not left.exists() and Path("dog7.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("setting", ["profile = team", "credentialpath = {keys}", "configpath = {keys}"])
def test_a_stranger_does_not_choose_among_the_users_credentials(stranger, listener, tmp_path, monkeypatch, setting):
    """Even with --remote."""
    keys = tmp_path / "keys"
    keys.write_text(
        "[default]\naws_access_key_id = OTHER\naws_secret_access_key = x\n[team]\naws_access_key_id = OTHER\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    key, _, value = setting.format(keys=keys).partition(" = ")
    commit(stranger, "v2", **{".dvc__config": settings(listener.endpoint, **{key: value})})
    assert main(["pull", "dog7", f"--repo={url(stranger)}", "--remote", "store"]) == 0
    assert "AKIDOFTHEUSER" in sent(listener) and "OTHER" not in sent(listener)


def test_a_redirect_leads_to_no_file(stranger, listener, tmp_path, place, capsys):
    (tmp_path / "secret").write_text("x")
    for target in (f"file://{tmp_path}/secret", "gopher://127.0.0.1/", "http://127.0.0.1:1/"):
        listener.location = target
        refused(capsys, "pull", "dog7", f"--repo={stranger}")
    assert files_of(place) == []


def test_a_repository_is_fetched_without_its_history_and_read_once(stranger, listener, monkeypatch):
    calls = []
    from persres.versions import snapshot

    monkeypatch.setattr(snapshot, "git", lambda folder, *arguments, **options: calls.append(arguments) or git(folder, *arguments, **options))  # fmt: skip
    repository = Repository(url(stranger))
    assert repository.text("v1", "params.yaml") == PARAMS
    assert [file.path for file in repository.files("v1", "data/learned")] == ["data/learned/ours/dog7.safetensors"]
    assert [call for call in calls if call[0] == "fetch"] and len([call for call in calls if call[0] == "fetch"]) == 1
    assert "--depth=1" in next(call for call in calls if call[0] == "fetch")


SECRET_ADDRESSES = ["http://user:hunter2@127.0.0.1:9/x", "https://hunter2@127.0.0.1:9/x.git", "http://u:hun/ter2@127.0.0.1:9/x", "http://127.0.0.1:9/x?token=hunter2", "git@127.0.0.1:/nothing?sig=hunter2"]  # fmt: skip


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_no_message_has_a_password(address, capsys, monkeypatch):
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    message = refused(capsys, "list", f"--repo={address}")
    assert "hunter2" not in message and "ter2" not in message
    with pytest.raises(PersresError) as error:
        Repository(address).newest()
    assert "ter2" not in str(error.value)


def test_a_silent_git_server_is_an_error(monkeypatch, capsys):
    from persres.versions import repository

    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(repository, "ANSWER_SECONDS", 0.5)
    address = f"git://127.0.0.1:{server.getsockname()[1]}/x"
    done = threading.Timer(20, server.close)
    done.start()
    assert "no answer" in refused(capsys, "list", f"--repo={address}")
    done.cancel()
    server.close()
