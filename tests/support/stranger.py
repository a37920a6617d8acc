"""A repository that somebody else published, written by hand without DVC, and a server that records what it is sent."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from persres.versions.git_dvc import git

AUTHOR = ("-c", "user.name=s", "-c", "user.email=s@s")
CONTENT = b"a residual" * 100
PARAMS = "profile: tiny\ntiny: {train: {lr: 0.001}}\n"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class Listener:
    """``objects``: path -> content; ``seen``: headers of each request; ``status``: of what is not there."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[dict[str, str]] = []
        self.status, self.location = 404, ""
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.seen.append({name.lower(): value for name, value in self.headers.items()})
                body = listener.objects.get(self.path.partition("?")[0])
                status = 302 if listener.location else 200 if body is not None else listener.status
                self.send_response(status)
                self.send_header("Content-Length", str(len(body or b"")))
                if listener.location:
                    self.send_header("Location", listener.location)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_PUT = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def hold(self, data: bytes, suffix: str = "", prefix: str = "/bucket/team") -> str:
        """Serve an object of DVC; returns its digest."""
        name = md5(data)
        self.objects[f"{prefix}/files/md5/{name[:2]}/{name[2:]}{suffix}"] = data
        return name

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def settings(endpoint: str, **more: str) -> str:
    """A .dvc/config whose default remote is in S3."""
    lines = {"url": "s3://bucket/team", "endpointurl": endpoint} | more
    text = "".join(f"    {key} = {value}\n" for key, value in lines.items() if value)
    return f"[core]\n    remote = store\n['remote \"store\"']\n{text}"


def lock_of(digest: object, path: object = "data/learned") -> str:
    """A dvc.lock with one output."""
    out = {"path": path, "hash": "md5", "md5": digest}
    return json.dumps({"schema": "2.0", "stages": {"train": {"cmd": "x", "outs": [out]}}})


def listing_of(entries: object) -> bytes:
    return json.dumps(entries).encode()


def make_repository(folder: Path, **files: str) -> Path:
    """A git repository with these files, names with ``__`` for ``/``, and the tag v1."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "v1", **files)
    return folder


def commit(folder: Path, tag: str, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A", "-f")
    git(folder, *AUTHOR, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(folder, "tag", tag)
