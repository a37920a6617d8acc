"""Types of names, digests and text from outside, for the fields of pydantic models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from persres.errors import PersresError
from persres.untrusted.names import digest, identifier, object_key, relative_path


def checked(check: Callable[[str], str]) -> AfterValidator:
    """A check of :mod:`persres.untrusted.names` as pydantic's: its error then names the field."""

    def validate(text: str) -> str:
        try:
            return check(text)
        except PersresError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(validate)


Sha256 = Annotated[str, checked(digest)]
UnitHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$", max_length=16)]
FileName = Annotated[str, checked(relative_path)]  # below one folder, of files that this library names
Key = Annotated[str, checked(object_key)]  # below one folder, of files that a person names
Identifier = Annotated[str, checked(identifier)]
ShortText = Annotated[str, StringConstraints(max_length=4096)]
