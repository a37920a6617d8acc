"""What DVC does not do with its S3 remote, with boto3: a health check, and links that need no key."""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from persres.errors import PersresError
from persres.untrusted.text import redacted
from persres.versions.download import s3_place
from persres.versions.git_dvc import INSTALL, CommandError, NoRemote, fix_for
from persres.versions.repository import StoredFile

TIMEOUT = 10  # seconds to connect and to read
KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
FILES = (  # DVC's setting, botocore's variable, the environment's
    ("credentialpath", "credentials_file", "AWS_SHARED_CREDENTIALS_FILE"),
    ("configpath", "config_file", "AWS_CONFIG_FILE"),
)
LONGEST = 7 * 24 * 3600  # seconds: the longest lifetime of a presigned link


class NoBoto(CommandError):
    """boto3 is not installed."""


@dataclass(frozen=True)
class S3Remote:
    """A DVC remote in S3. ``endpoint`` None is AWS; ``settings``: DVC's others, some of which are secrets."""

    name: str
    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    settings: dict[str, str] = field(default_factory=dict, repr=False)

    def key(self, md5: str) -> str:
        """The key of a file with that digest (DVC's layout since version 3)."""
        return "/".join(part for part in (self.prefix, "files/md5", md5[:2], md5[2:]) if part)

    def client(self) -> Any:
        """A boto3 client with the credentials of :func:`aws_session`. Raises CommandError if boto3 is missing or refuses a setting."""
        session = aws_session(self.settings)
        from botocore.config import Config

        retries = {"max_attempts": 2}
        config = Config(connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries=retries, signature_version="s3v4")
        options = {"endpoint_url": self.endpoint, "region_name": self.region, "verify": _verify(self.settings)}
        try:
            return session.client(
                "s3", use_ssl=self.settings.get("use_ssl", "").lower() != "false", config=config, **options
            )
        except Exception as error:  # a profile, region, address or file that is none
            raise CommandError(f"DVC remote {self.name}: {error}", _fix(error)) from error


def aws_session(settings: dict[str, str]) -> Any:
    """A boto3 session with the credentials of a DVC remote: keys, ``profile`` and ``credentialpath`` of its settings, else the environment's.

    Raises CommandError without boto3 and for an unknown profile.
    """
    try:
        import botocore.session
        from boto3.session import Session
    except ImportError as error:
        raise NoBoto("boto3 is not installed", INSTALL) from error
    core = botocore.session.Session(profile=settings.get("profile"))
    for key, variable, environment in FILES:
        if key in settings and environment not in os.environ:  # DVC prefers the environment too
            core.set_config_variable(variable, settings[key])
    keys = {name: settings[key] for name, key in KEYS.items() if key in settings}
    try:
        return Session(botocore_session=core, **keys)
    except Exception as error:  # botocore checks the profile here, and half of a pair of keys
        raise CommandError(f"no S3 credentials: {error}", "check AWS_PROFILE and the remote's profile") from error


def _verify(settings: dict[str, str]) -> bool | str | None:
    """boto3's ``verify`` of DVC's ``ssl_verify``: a switch or a file of certificates."""
    value = settings.get("ssl_verify")
    return {"true": True, "false": False}.get(str(value).lower(), value)


def s3_remote(settings: dict[str, str], name: str | None = None) -> S3Remote | None:
    """The remote of a name in DVC's configuration, or the default remote; None if it is not in S3. Raises NoRemote if there is none."""
    name = name or settings.get("core.remote")
    if name is None:
        raise NoRemote("there is no DVC remote", "dvc remote add -d store s3://BUCKET/PREFIX (docs/versions.md)")
    url = settings.get(f"remote.{name}.url")
    if url is None:
        raise NoRemote(f"there is no DVC remote {name}", "dvc remote list prints the existing ones")
    if not url.startswith("s3://"):
        return None
    start = f"remote.{name}."
    others = {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}
    return S3Remote(name, *s3_place(url), others.get("endpointurl"), others.get("region"), others)


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


def link(remote: S3Remote, file: StoredFile, seconds: float) -> str:
    """A link to a file that needs no key and expires after ``seconds``. Raises PersresError if the object does not exist."""
    if not 1 <= seconds <= LONGEST:
        raise PersresError(f"a link lives 1 to {LONGEST:,} seconds (7 days), not {seconds:,}")
    client, target = remote.client(), {"Bucket": remote.bucket, "Key": remote.key(file.md5)}
    try:
        client.head_object(**target)
        name = re.sub(r"[^ !#-\[\]-~]", "_", file.path.rsplit("/", 1)[-1])  # a header takes no others
        request = target | {"ResponseContentDisposition": f'attachment; filename="{name}"'}
        return client.generate_presigned_url("get_object", Params=request, ExpiresIn=int(seconds))
    except Exception as error:
        fix = "push it again from a clone that has it" if error_code(error) == "404" else _fix(error)
        raise PersresError(redacted(f"no link to {file.path} in {remote.bucket}: {error}; {fix}")) from error
