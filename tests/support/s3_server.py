"""An S3 server on loopback, moto or a proxy of another server. A test can make it refuse, drop or delay requests."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlencode

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "persres"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
UNSIGNED = (
    b"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not match the"
    b" signature you provided.</Message></Error>"
)


def credentials(endpoint: str) -> dict[str, str]:
    """The environment variables of a client."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "NO_PROXY": "127.0.0.1,localhost",
    }


class Server:
    """``refuse(method, path)`` may return "deny" (403), "drop" (close the connection without an answer) or seconds to wait first.

    ``requests``: all; ``forwarded``: those that reached the store.
    """

    def __init__(self, app=None) -> None:
        self.secret = None if app else "testing"  # another server checks signatures itself; moto accepts all
        self.app = app or DomainDispatcherApplication(create_backend_app)
        self.refuse: Callable[[str, str], str | float | None] = lambda method, path: None
        self.running, self.lock = 0, threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.forwarded: list[tuple[str, str]] = []
        logging.getLogger("werkzeug").setLevel(
            logging.CRITICAL
        )  # else it logs every request, and a traceback per dropped one
        self.http = make_server("127.0.0.1", 0, self, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        with self.lock:
            self.running += 1
        try:
            return self._answer(environ, start_response)
        finally:
            with self.lock:
                self.running -= 1

    def settle(self) -> None:
        """Wait for requests whose client no longer waits."""
        while self.running:
            time.sleep(0.01)

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        answer = self.refuse(method, path)
        if answer == "deny" or (self.secret and not signed_with(self.secret, environ)):
            why = DENIED if answer == "deny" else UNSIGNED
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(why)))])
            return [why]
        if answer == "drop":
            environ["werkzeug.socket"].shutdown(
                socket.SHUT_RDWR
            )  # close() would keep the connection open for the server
            return []
        if answer is not None:
            time.sleep(answer)
        self.forwarded.append((method, path))
        return self.app(environ, start_response)

    def client(self):
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def signed_with(secret: str, environ) -> bool:
    """Whether a request's header was signed with that secret (AWS Signature Version 4); presigned links are not checked."""
    scheme, _, fields = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return "HTTP_AUTHORIZATION" not in environ
    parts = dict(part.strip().split("=", 1) for part in fields.split(","))
    key, _, region, service, _ = parts["Credential"].split("/")
    signed = {name: name.upper().replace("-", "_") for name in parts["SignedHeaders"].split(";")}
    headers = {name: environ.get(f"HTTP_{field}", environ.get(field)) for name, field in signed.items()}
    path, _, query = environ["RAW_URI"].partition("?")
    query = urlencode(
        parse_qsl(query, keep_blank_values=True), quote_via=quote, safe="-_.~"
    )  # however a client wrote it
    url = f"http://{environ['HTTP_HOST']}{path}{'?' if query else ''}{query}"
    request = AWSRequest(environ["REQUEST_METHOD"], url, headers)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = S3SigV4Auth(Credentials(key, secret), service, region)
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request) == parts["Signature"]
