"""A Prefect server that may be away: what must be asked waits for it, what is only to be seen is left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from persres.errors import PersresError

log = logging.getLogger("persres.fleet")
POLL = 3.0  # seconds between two tries, and between two looks at runs
AWAY = 900.0  # seconds to wait for a server that does not answer
T = TypeVar("T")


def answered(ask: Callable[[], T], away: Callable[[], None] = lambda: None) -> T:
    """What ``ask`` returns, as soon as the server answers; ``away`` is called each time that it did not. Raises PersresError where it stays
    away, or refuses."""
    until = time.monotonic() + AWAY
    while True:
        try:
            return ask()
        except (httpx.HTTPError, RuntimeError) as error:
            if not is_away(error):
                if isinstance(error, RuntimeError):
                    raise
                raise PersresError(
                    f"the Prefect server refused ({error}); look at PREFECT_API_URL and its credentials"
                ) from error
            if time.monotonic() > until:
                raise PersresError(
                    f"the Prefect server stays away ({error!r}); start it, then run this again"
                ) from error
            log.warning("fleet: the Prefect server does not answer; waiting for it")
            away()
            time.sleep(POLL)


def is_away(error: Exception) -> bool:
    """Whether nobody answered, or the server said that it can't now. Prefect's client wraps the first into a RuntimeError at times."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx.HTTPError) or "Failed to reach API" in str(error)


def shown(show: Callable[[], T]) -> T | None:
    """What ``show`` returns; None, and a warning, where the server did not take it: a page less is no reason to fail."""
    try:
        return show()
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_away(error):
            raise
        log.warning("fleet: not shown in Prefect's pages: %s", error or type(error).__name__)
        return None
