"""Download archives: huggingface_hub fetches from the hub and resumes, pooch fetches the rest.

Each file's SHA-256 must equal the pinned digest, the one recorded by an earlier run (``<file>.sha256``, as ``sha256sum -c``
reads it) and, from the hub, the one that the server names. An existing file is checked and not fetched again.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from persres.errors import PersresError
from persres.units.files import digest_file, write_atomic
from persres.untrusted.documents import read_text
from persres.untrusted.names import digest as check_digest
from persres.untrusted.text import printable, redacted

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)
TIMEOUT = 60  # seconds to connect, and between two chunks
ENDPOINT: str | None = None  # of the hub; None takes huggingface_hub's default (HF_ENDPOINT)
_SHA256 = re.compile(r"[0-9a-f]{64}")
Digests = dict[str, str | None]  # expected SHA-256 by its source


def from_web(url: str, target: Path, pinned: str | None = None, fix: str = "connect to the network") -> Path:
    """Download ``url`` as ``target``. Raises PersresError with the URL and ``fix``."""
    return _verified(url, target, pinned, fix, lambda expected: _by_pooch(url, target))


def from_hub(
    dataset: str, name: str, target: Path, pinned: str | None = None, fix: str = "connect to the network"
) -> Path:
    """Download a file of a dataset on the Hugging Face hub as ``target``. Raises PersresError with the URL and ``fix``."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(dataset, name, repo_type="dataset", endpoint=ENDPOINT)
    return _verified(url, target, pinned, fix, lambda expected: expected.update(_by_hub(url, dataset, name, target)))


def _verified(url: str, target: Path, pinned: str | None, fix: str, receive: Callable[[Digests], None]) -> Path:
    record, url = target.with_name(f"{target.name}.sha256"), redacted(url)
    expected: Digests = {
        "the pinned one in fetch.sha256": pinned,
        "the one recorded by an earlier run": _recorded(record),
    }
    existing = target.exists()
    if existing and not target.is_file():
        raise PersresError(f"{target} is not a regular file; remove it and run again")
    if not existing:
        _receive(url, target, fix, lambda: receive(expected))
    digest = digest_file(target)
    wrong = [f"{source} is {other}" for source, other in expected.items() if other not in (None, digest)]
    if wrong:
        fix = f"delete {target} to fetch it again, or {record} where the change is intended"
        if not existing:
            target.unlink()
            fix = f"run again; where the change of {url} is intended, correct fetch.sha256 or delete {record}"
        raise PersresError(f"{target} has sha256 {digest}, but {' and '.join(wrong)}; {fix}")
    write_atomic(record, f"{digest}  {target.name}\n".encode())
    log.info("fetch: %s has sha256 %s", target, digest)
    return target


def _recorded(record: Path) -> str | None:
    if not record.exists():
        return None
    words, fix = read_text(record).split(), f"delete {record} to record the archive's digest again"
    return check_digest(words[0].lower(), what=f"{record}: digest", fix=fix) if words else None


def _receive(url: str, target: Path, fix: str, receive: Callable[[], None]) -> None:
    import requests
    from huggingface_hub import errors as hub

    network = (requests.RequestException, hub.HTTPError, hub.OfflineModeIsEnabled, hub.FileMetadataError)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        receive()
    except PersresError:
        raise
    except (*network, hub.EntryNotFoundError) as error:
        raise PersresError(f"cannot fetch {url} ({_reason(error)}); {fix}") from error
    except OSError as error:
        raise PersresError(
            f"cannot write {target}: {error.strerror or error}; free some space or make the folder writable, then run again"
        ) from error
    except (
        Exception
    ) as error:  # what a client makes of a server's answer, such as ValueError for a length that is no number
        raise PersresError(f"cannot fetch {url} ({_reason(error)}); {fix}") from error


# By name: requests and the hub's client, which has changed its HTTP library twice, name their errors alike.
_REASONS = {
    "ChunkedEncodingError": "the connection was cut",
    "RemoteProtocolError": "the connection was cut",
    "ConnectionError": "no connection",
    "ConnectError": "no connection",
    "ConnectTimeout": "the server does not answer",
    "ReadTimeout": "the server does not answer",
}


def _reason(error: BaseException) -> str:
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"the server answers {answer.status_code}"
    if type(error).__name__ in _REASONS:
        return _REASONS[type(error).__name__]
    return _reason(error.__cause__) if error.__cause__ is not None else printable(redacted(error).split("\n")[0], 200)


def _check_redirect(start: str, target: str) -> None:
    """Raises PersresError for a redirect from TLS to an address without, and to anything that is not the web."""
    secure = urlsplit(start).scheme == "https"
    if urlsplit(target).scheme not in (("https",) if secure else ("https", "http")):
        where = f"{printable(redacted(start))} redirects to {printable(redacted(target))}"
        raise PersresError(
            f"{where}, which is {'no https address' if secure else 'not on the web'}; do not trust this server"
        )


def _check_response(response: requests.Response, *arguments: object, **named: object) -> None:
    """A hook of requests, called before each redirect is followed."""
    if response.is_redirect:
        _check_redirect(response.url, urljoin(response.url, response.headers["location"]))


def _by_pooch(url: str, target: Path) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    hooks = {"response": _check_response}
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT, hooks=hooks)
    pooch.retrieve(url, None, target.name, target.parent, downloader=download)


def _by_hub(url: str, dataset: str, name: str, target: Path) -> Digests:
    """Returns the digest that the hub names."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download

    metadata = get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=ENDPOINT)
    _check_redirect(url, urljoin(url, metadata.location))
    tag = metadata.etag or ""
    hf_hub_download(dataset, name, repo_type="dataset", local_dir=target.parent, endpoint=ENDPOINT)
    return {"the one that the server names": tag if _SHA256.fullmatch(tag) else None}  # small files have a git digest
