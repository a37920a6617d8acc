"""Calls of a Prefect server that may be unavailable: required calls are retried, calls that only display something are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from persres.errors import PersresError

log = logging.getLogger("persres.fleet")
POLL = 3.0  # seconds between two tries, and between two polls of runs
PATIENCE = 900.0  # seconds of tries before giving up
T = TypeVar("T")


def call_server(call: Callable[[], T], on_retry: Callable[[], None] = lambda: None) -> T:
    """The result of ``call``, retried while the server is unavailable. Raises PersresError if it stays so, or refuses."""

    def before_sleep(state: object) -> None:
        log.warning("fleet: the Prefect server does not answer; waiting for it")
        on_retry()

    try:
        return Retrying(
            retry=retry_if_exception(is_unavailable),
            stop=stop_after_delay(PATIENCE),
            wait=wait_fixed(POLL),
            before_sleep=before_sleep,
            reraise=True,
        )(call)
    except (httpx.HTTPError, RuntimeError) as error:
        if is_unavailable(error):
            raise PersresError(
                f"the Prefect server does not answer ({error!r}); start it, then run this again"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise PersresError(
            f"the Prefect server refused ({error}); check PREFECT_API_URL and PREFECT_API_AUTH_STRING"
        ) from error


def is_unavailable(error: BaseException) -> bool:
    """Whether nobody answered, or with a temporary error. Prefect's client sometimes wraps the first into a RuntimeError."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx.HTTPError) or (
        isinstance(error, RuntimeError) and "Failed to reach API" in str(error)
    )


def try_to_show(call: Callable[[], T]) -> T | None:
    """The result of ``call``; None, and a warning, if the server fails: a missing artifact must not fail the run."""
    try:
        return call()
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_unavailable(error):
            raise
        log.warning("fleet: not shown in Prefect's pages: %s", error or type(error).__name__)
        return None
