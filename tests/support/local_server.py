"""A local HTTP server that mimics the Hugging Face hub, for tests of downloads."""

from __future__ import annotations

import hashlib
import http.server
import io
import stat
import threading
import zipfile


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` with ranges; may send a truncated answer, or redirect ``/datasets/…/resolve/…`` as a hub does."""

    def do_GET(self):
        server, ranged = self.server, self.headers.get("Range")
        server.requests.append((self.path, ranged))
        if "/resolve/" in self.path:
            self.to_hub_file()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        body = server.files[self.path]
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        if self.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body[start : start + server.max_bytes if server.max_bytes else None])

    def do_HEAD(self):
        self.server.requests.append((self.path, "HEAD"))
        if "/resolve/" in self.path:
            self.to_hub_file()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[self.path])))
        self.end_headers()

    def to_hub_file(self):
        """The hub's answer for a large file: its location, SHA-256, size and commit."""
        body = self.server.files.get("/a.zip")
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/a.zip")  # elsewhere, as the hub does
        self.send_header("X-Linked-ETag", f'"{self.server.etag or hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def start() -> http.server.ThreadingHTTPServer:
    """A running one; ``files`` by path, ``requests`` received, ``max_bytes`` per answer, ``etag`` of the hub."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.files, served.requests, served.max_bytes, served.etag = {}, [], 0, ""
    served.url = f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    return served


def zipped(files: dict[str, bytes], link: str | None = None) -> bytes:
    """A ZIP's bytes; ``link`` adds a symbolic link of that name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if name == link else stat.S_IFREG) | 0o644) << 16
            packed.writestr(info, content)
    return buffer.getvalue()
