"""DVC imported once, for all that one of our commands asks of it.

``python -m dvc`` takes seconds before it does anything, nearly all of them imports, and a pull asks it five times. So a process of its own
imports DVC and forks at each request: every call is still a process that nothing is left over from, with the folder, the environment
and the files for its words that the caller gives. On Linux alone: elsewhere a fork without exec is not safe to build on.

This file is that process's program too; it runs without the rest of persres, which itself never imports DVC.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

# What dvc list, get, push, status and gc load with a remote in S3; what is not installed is passed over.
PRELOADED = (
    "aiohttp_retry", "configobj", "dulwich.ignore", "dulwich.worktree", "dvc._debug", "dvc.cachemgr", "dvc.cli.parser",
    "dvc.data_cloud", "dvc.dirs", "dvc.fs.dvc", "dvc.info", "dvc.lock", "dvc.repo.artifacts", "dvc.repo.brancher",
    "dvc.repo.datasets", "dvc.repo.experiments.utils", "dvc.repo.index", "dvc.repo.metrics.show", "dvc.repo.open_repo",
    "dvc.repo.params.show", "dvc.repo.plots", "dvc.repo.stage", "dvc.repo.worktree", "dvc.rwlock", "dvc.utils.strictyaml",
    "dvc_data.fs", "dvc_data.hashfile.db.index", "dvc_data.hashfile.db.local", "dvc_data.hashfile.status",
    "dvc_data.hashfile.transfer", "dvc_data.index.checkout", "dvc_data.index.collect", "dvc_data.index.fetch",
    "dvc_data.index.push", "dvc_s3", "flatten_dict", "flufl.lock", "fsspec.implementations.memory", "platformdirs", "pygit2",
    "rich.json", "ruamel.yaml", "s3fs", "scmrepo.fs", "scmrepo.git.lfs", "zc.lockfile",
)  # fmt: skip


class NotStarted(Exception):
    """That process is not to be had; DVC can still be run by itself."""


class Starter:
    """The process and the socket to it. It ends with the last process that holds the socket."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise NotStarted("a fork is no good start there")
        self.socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            command = [sys.executable, "-P", __file__, str(its.fileno())]
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            self.process = subprocess.Popen(command, pass_fds=[its.fileno()], **quiet)

    def start(
        self, folder: Path, arguments: list[str], environment: dict[str, str], out: int, err: int
    ) -> socket.socket:
        """Start ``dvc ARGUMENTS``, which writes to two open files; :func:`code_of` the socket waits for it. Raises NotStarted."""
        ours, its = socket.socketpair()
        asked = {"folder": str(folder.resolve()), "arguments": arguments, "environment": environment}
        try:
            with its:
                socket.send_fds(self.socket, [b"."], [out, err, its.fileno()])
            ours.sendall(json.dumps(asked).encode() + b"\n")
        except OSError as error:
            ours.close()
            raise NotStarted(str(error)) from error
        return ours


def code_of(answer: socket.socket) -> int:
    """Wait for the process's end and give its exit code. Raises NotStarted where it ended without one: it never began, or was killed."""
    with answer, answer.makefile() as said:
        told = said.read()
    if not told.strip():
        raise NotStarted("no answer")
    return int(told)


def _serve(control: socket.socket) -> None:
    """Import, then fork at each request until nobody holds the other end. The forks go on behind the return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what was asked of us and for who asked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        importlib.import_module("dvc.cli.parser").get_main_parser()  # kept by DVC; half a second
    if threading.active_count() > 1:
        return  # a fork would lose the other threads, and keep the locks that they hold
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 3)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            return _become(*files)
        for file in files:
            os.close(file)


def _become(out: int, err: int, answer: int) -> None:
    """Be ``dvc`` as it was asked for. The answer stays open to the process's very end, which is what the other side waits for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    os.set_inheritable(answer, False)
    with os.fdopen(os.dup(answer)) as asking:
        asked = json.loads(asking.readline())
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["dvc", *asked["arguments"]]
    try:
        code = importlib.import_module("dvc.cli").main(asked["arguments"])
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    os.write(answer, f"{code or 0}\n".encode())


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
