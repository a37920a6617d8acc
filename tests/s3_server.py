"""An S3 server on loopback, moto's or one that it stands before, which a test can make refuse, drop or slow down what it is asked."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "persres"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def credentials(endpoint: str) -> dict[str, str]:
    """What a client's environment has to say."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "NO_PROXY": "127.0.0.1,localhost",
    }


class Server:
    """``refuse(method, path)`` may answer "deny" (403), "drop" (the connection ends with no word) or seconds to wait first.

    ``asked``: every request; ``let_through``: those that reached the store.
    """

    def __init__(self, app=None) -> None:
        self.app = app or DomainDispatcherApplication(create_backend_app)
        self.refuse: Callable[[str, str], str | float | None] = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self.let_through: list[tuple[str, str]] = []
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line a request, a traceback a drop
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        answer = self.refuse(method, path)
        if answer == "deny":
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(DENIED)))])
            return [DENIED]
        if answer == "drop":
            environ["werkzeug.socket"].shutdown(
                socket.SHUT_RDWR
            )  # close() alone would leave it to the server's own files
            return []
        if answer is not None:
            time.sleep(answer)
        self.let_through.append((method, path))
        return self.app(environ, start_response)

    def client(self):
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
