"""Archives from the network: huggingface_hub fetches what lies on the hub and goes on where it stopped, pooch fetches the rest.

Both are compared by SHA-256 with the pinned digest, with the one recorded by an earlier run (``<file>.sha256``, as ``sha256sum
-c`` reads it) and, from the hub, with the one that it names. A file that lies there already is not fetched again, only compared.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from persres.errors import PersresError
from persres.units.files import digest_file, write_atomic

log = logging.getLogger(__name__)
TIMEOUT = 60  # seconds to connect, and between two pieces
ENDPOINT: str | None = None  # of the hub; none takes huggingface_hub's own (HF_ENDPOINT)
_SHA256 = re.compile(r"[0-9a-f]{64}")
Known = dict[str, str | None]  # SHA-256 by who says so


def from_web(url: str, target: Path, pinned: str | None = None, mend: str = "connect to the network") -> Path:
    """The file at ``url`` as ``target``. Raises PersresError naming URL and ``mend``."""
    return _kept(url, target, pinned, mend, lambda known: _by_pooch(url, target))


def from_hub(
    dataset: str, name: str, target: Path, pinned: str | None = None, mend: str = "connect to the network"
) -> Path:
    """A file of a dataset on the Hugging Face hub as ``target``, under its name there. Raises PersresError naming URL and ``mend``."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(dataset, name, repo_type="dataset", endpoint=ENDPOINT)
    return _kept(url, target, pinned, mend, lambda known: _by_hub(url, dataset, name, target, known))


def _kept(url: str, target: Path, pinned: str | None, mend: str, receive: Callable[[Known], None]) -> Path:
    record = target.with_name(f"{target.name}.sha256")
    known: Known = {"the pinned one in fetch.sha256": pinned, "the one recorded by an earlier run": _recorded(record)}
    there = target.exists()
    if not there:
        _receive(url, target, known, receive, mend)
    digest, wrong = digest_file(target), []
    for whose, wanted in known.items():
        if wanted is not None and wanted != digest:
            wrong.append(f"{whose} is {wanted}")
    if wrong and there:
        mend = f"delete {target} to fetch it again, or {record} where the change is meant"
    elif wrong:
        target.unlink()
        mend = f"run again; where {url} has changed and that is meant, mend fetch.sha256 or delete {record}"
    if wrong:
        raise PersresError(f"{target} has sha256 {digest}, but {' and '.join(wrong)}; {mend}")
    write_atomic(record, f"{digest}  {target.name}\n".encode())
    log.info("fetch: %s has sha256 %s", target, digest)
    return target


def _recorded(record: Path) -> str | None:
    return record.read_text().split()[0] if record.exists() and record.read_text().strip() else None


def _receive(url: str, target: Path, known: Known, receive: Callable[[Known], None], mend: str) -> None:
    import requests
    from huggingface_hub import errors as hub

    network = (requests.RequestException, hub.HTTPError, hub.OfflineModeIsEnabled, hub.FileMetadataError)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        receive(known)
    except (*network, hub.EntryNotFoundError) as error:
        raise PersresError(f"cannot fetch {url} ({_reason(error)}); {mend}") from error
    except OSError as error:
        raise PersresError(
            f"cannot write {target}: {error.strerror or error}; free some space or make the folder writable, then run again"
        ) from error


# By name: requests' errors and those of the hub's client, which has changed its HTTP library twice, are called alike.
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
    return _reason(error.__cause__) if error.__cause__ is not None else str(error).split("\n")[0][:200]


def _by_pooch(url: str, target: Path) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    pooch.retrieve(url, None, target.name, target.parent, downloader=download)


def _by_hub(url: str, dataset: str, name: str, target: Path, known: Known) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download

    tag = get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=ENDPOINT).etag or ""
    known["the one that the server names"] = tag if _SHA256.fullmatch(tag) else None  # of small files it is git's
    hf_hub_download(dataset, name, repo_type="dataset", local_dir=target.parent, endpoint=ENDPOINT)
