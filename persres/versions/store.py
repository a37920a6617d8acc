"""What DVC has no answer for about its S3 remote, by boto3: whether it can be read and written, and links that need no key."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from persres.errors import PersresError
from persres.versions.git_dvc import CommandError, NoRemote, fix_for
from persres.versions.repository import StoredFile

SECONDS = 10  # to wait for a server that does not answer
LONGEST = 7 * 24 * 3600  # what S3 signs for


@dataclass(frozen=True)
class S3Remote:
    """A DVC remote in S3. ``endpoint`` None is AWS's own."""

    name: str
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None

    def key(self, md5: str) -> str:
        """Where DVC keeps a file of that digest (its layout since version 3)."""
        return "/".join(part for part in (self.prefix, "files/md5", md5[:2], md5[2:]) if part)

    def client(self) -> Any:
        """A boto3 client; credentials come from the environment. Raises PersresError where boto3 is not installed."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise CommandError("boto3 is not installed here", "pip install 'persres[pipeline]'") from error
        config = Config(
            connect_timeout=SECONDS, read_timeout=SECONDS, retries={"max_attempts": 2}, signature_version="s3v4"
        )
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, region_name=self.region, config=config)


def s3_remote(settings: dict[str, str], name: str | None = None) -> S3Remote | None:
    """The remote of a name in DVC's configuration, or its default one; None where that is not in S3. Raises NoRemote where there is
    none."""
    name = name or settings.get("core.remote")
    if name is None:
        raise NoRemote("there is no DVC remote", "dvc remote add -d store s3://BUCKET/PREFIX (docs/versions.md)")
    url = settings.get(f"remote.{name}.url")
    if url is None:
        raise NoRemote(f"there is no DVC remote {name}", "dvc remote list names those that there are")
    place = urlsplit(url)
    if place.scheme != "s3":
        return None
    endpoint, region = (settings.get(f"remote.{name}.{key}") for key in ("endpointurl", "region"))
    return S3Remote(name, place.netloc, place.path.strip("/"), endpoint, region)


def check_health(remote: S3Remote) -> None:
    """Put an object, read it, delete it. Raises MendedError with what failed and the mend."""
    client, key = remote.client(), "/".join(part for part in (remote.prefix, f".persres-{uuid.uuid4().hex}") if part)
    what = f"reading bucket {remote.bucket}"
    try:
        # not HEAD: its answer has no body, so that a wrong secret and a missing right would read alike
        client.list_objects_v2(Bucket=remote.bucket, Prefix=key, MaxKeys=1)
        what = f"writing to bucket {remote.bucket}"
        client.put_object(Bucket=remote.bucket, Key=key, Body=b"persres")
        client.get_object(Bucket=remote.bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=remote.bucket, Key=key)
    except Exception as error:
        raise CommandError(f"{what} at {remote.endpoint or 'AWS'} failed: {error}", _mend(error)) from error


def _mend(error: Exception) -> str:
    return fix_for(f"{type(error).__name__} {error}") or "look at the remote's endpointurl, the network and the server"


def error_code(error: Exception) -> str:
    """S3's own code for what went wrong; empty where no answer came (botocore leaves ``response`` None then)."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def link(remote: S3Remote, file: StoredFile, seconds: int) -> str:
    """A link to a file that needs no key and ends after ``seconds``. Raises PersresError where the object is not there."""
    if not 1 <= seconds <= LONGEST:
        raise PersresError(f"a link lives 1 to {LONGEST:,} seconds (7 days), not {seconds:,}")
    client, place = remote.client(), {"Bucket": remote.bucket, "Key": remote.key(file.md5)}
    try:
        client.head_object(**place)
        name = file.path.rsplit("/", 1)[-1]
        asked = place | {"ResponseContentDisposition": f'attachment; filename="{name}"'}
        return client.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds)
    except Exception as error:
        gone = error_code(error) == "404"
        mend = "push it again from a clone that has it" if gone else _mend(error)
        raise PersresError(f"no link to {file.path} in {remote.bucket}: {error}; {mend}") from error
