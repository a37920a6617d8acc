"""A real S3 server on loopback: Ceph's monitor, one OSD in memory, its RADOS gateway. Starts in about 15 s; :meth:`Ceph.stop` ends it.

Needs root and Debian's packages radosgw, ceph-mon, ceph-osd, ceph-common (``make ceph``).
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.s3_server import Server

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms mon client mode = crc secure
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 2000
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
run dir = {folder}
admin socket = {folder}/$cluster-$name.asok
log file = {folder}/$cluster-$name.log
pid file = {folder}/$name.pid
mon data = {folder}/mon.a
osd data = {folder}/osd.0
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 32
rgw dns name = localhost
"""


def why_not() -> str | None:
    """Why no Ceph can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (make ceph installs Debian's packages)"
    return None if os.geteuid() == 0 else "Ceph's daemons need root"


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class Ceph:
    """``endpoint`` accepts key and secret "testing" and, unlike moto, refuses a wrong secret."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "ceph.conf"
        port, fsid = _free_port(), str(uuid.uuid4())
        places = {"mon1": _free_port(), "mon2": _free_port(), "port": port, "fsid": fsid, "folder": folder}
        self.config.write_text(CONFIG.format(**places))
        for name in ("mon.a", "osd.0", "rgw"):
            (folder / name).mkdir()
        self.endpoint = f"http://127.0.0.1:{port}"
        address = f"[v2:127.0.0.1:{places['mon2']},v1:127.0.0.1:{places['mon1']}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"), bare=True)
        self._run("ceph-mon", "--no-mon-config", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
        self._run("ceph-mon", "--no-mon-config", "-i", "a")
        self._run("ceph", "osd", "new", osd := str(uuid.uuid4()))
        self._run("ceph-osd", "--no-mon-config", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", "--no-mon-config", "-i", "0")
        command = ["radosgw", "-f", "-c", str(self.config), "-n", "client.admin", "--no-mon-config"]
        self.gateway = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait(port)
        user = ("--uid=t", "--display-name=t", "--access-key=testing", "--secret-key=testing")
        self._run("radosgw-admin", "user", "create", *user)

    def _run(self, program: str, *arguments: str, bare: bool = False) -> None:
        command = [program, *([] if bare else ["-c", str(self.config)]), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=60)

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.3)
        raise TimeoutError("radosgw does not answer")

    def stop(self) -> None:
        self.gateway.kill()
        self.gateway.wait()
        for name in ("osd.0", "mon.a"):
            file = self.folder / f"{name}.pid"
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGKILL)


class Forward:
    """Forwards every request to a server unchanged, with its Host and signature."""

    def __init__(self, endpoint: str) -> None:
        self.address = urlsplit(endpoint).netloc

    def __call__(self, environ, start_response):
        headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
        headers = {name: value for name, value in headers.items() if name not in ("EXPECT", "CONNECTION")}
        headers |= {
            name: environ[key]
            for name, key in (("CONTENT-TYPE", "CONTENT_TYPE"), ("CONTENT-LENGTH", "CONTENT_LENGTH"))
            if environ.get(key)
        }
        size = environ.get("CONTENT_LENGTH")
        chunked = environ.get("wsgi.input_terminated")
        body = environ["wsgi.input"].read(int(size) if size else -1) if size or chunked else b""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body=body or None, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        returned = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        connection.close()
        start_response(f"{answer.status} {answer.reason}", returned)
        return [content]


@contextmanager
def serving(kind: str, tmp_path_factory) -> Iterator[Server]:
    """moto's server (``moto``), or a proxy of Ceph's gateway (``ceph``), which skips the test if it can't start. ``is_real``: not moto."""
    ceph = None
    if kind == "ceph":
        if why_not():
            pytest.skip(why_not())
        ceph = Ceph(tmp_path_factory.mktemp("ceph"))
    served = Server(Forward(ceph.endpoint) if ceph else None)
    served.is_real = ceph is not None
    yield served
    served.stop()
    if ceph:
        ceph.stop()
