"""What DVC does not do with its S3 remote, with boto3: a health check, and links that need no key."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from persres.errors import PersresError
from persres.versions.git_dvc import INSTALL, CommandError, NoRemote, fix_for
from persres.versions.repository import StoredFile

TIMEOUT = 10  # seconds to connect and to read
LONGEST = 7 * 24 * 3600  # seconds: the longest lifetime of a presigned link


@dataclass(frozen=True)
class S3Remote:
    """A DVC remote in S3. ``endpoint`` None is AWS."""

    name: str
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None

    def key(self, md5: str) -> str:
        """The key of a file with that digest (DVC's layout since version 3)."""
        return "/".join(part for part in (self.prefix, "files/md5", md5[:2], md5[2:]) if part)

    def client(self) -> Any:
        """A boto3 client with credentials from the environment. Raises CommandError if boto3 is not installed."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise CommandError("boto3 is not installed", INSTALL) from error
        retries = {"max_attempts": 2}
        config = Config(connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries=retries, signature_version="s3v4")
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, region_name=self.region, config=config)


def s3_remote(settings: dict[str, str], name: str | None = None) -> S3Remote | None:
    """The remote of a name in DVC's configuration, or the default remote; None if it is not in S3. Raises NoRemote if there is none."""
    name = name or settings.get("core.remote")
    if name is None:
        raise NoRemote("there is no DVC remote", "dvc remote add -d store s3://BUCKET/PREFIX (docs/versions.md)")
    url = settings.get(f"remote.{name}.url")
    if url is None:
        raise NoRemote(f"there is no DVC remote {name}", "dvc remote list prints the existing ones")
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return None
    endpoint, region = (settings.get(f"remote.{name}.{key}") for key in ("endpointurl", "region"))
    return S3Remote(name, parts.netloc, parts.path.strip("/"), endpoint, region)


def check_health(remote: S3Remote) -> None:
    """Put an object, read it, delete it. Raises CommandError with the failed step and the fix."""
    client, key = remote.client(), "/".join(part for part in (remote.prefix, f".persres-{uuid.uuid4().hex}") if part)
    step = f"reading bucket {remote.bucket}"
    try:
        # not HEAD: its answer has no body, so a wrong secret and a missing permission would look the same
        client.list_objects_v2(Bucket=remote.bucket, Prefix=key, MaxKeys=1)
        step = f"writing to bucket {remote.bucket}"
        client.put_object(Bucket=remote.bucket, Key=key, Body=b"persres")
        client.get_object(Bucket=remote.bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=remote.bucket, Key=key)
    except Exception as error:
        raise CommandError(f"{step} at {remote.endpoint or 'AWS'} failed: {error}", _fix(error)) from error


def _fix(error: Exception) -> str:
    return fix_for(f"{type(error).__name__} {error}") or "check the remote's endpointurl, the network and the server"


def error_code(error: Exception) -> str:
    """S3's code of an error; empty if no answer came (botocore leaves ``response`` None then)."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def link(remote: S3Remote, file: StoredFile, seconds: int) -> str:
    """A link to a file that needs no key and expires after ``seconds``. Raises PersresError if the object does not exist."""
    if not 1 <= seconds <= LONGEST:
        raise PersresError(f"a link lives 1 to {LONGEST:,} seconds (7 days), not {seconds:,}")
    client, target = remote.client(), {"Bucket": remote.bucket, "Key": remote.key(file.md5)}
    try:
        client.head_object(**target)
        name = file.path.rsplit("/", 1)[-1]
        request = target | {"ResponseContentDisposition": f'attachment; filename="{name}"'}
        return client.generate_presigned_url("get_object", Params=request, ExpiresIn=seconds)
    except Exception as error:
        fix = "push it again from a clone that has it" if error_code(error) == "404" else _fix(error)
        raise PersresError(f"no link to {file.path} in {remote.bucket}: {error}; {fix}") from error
