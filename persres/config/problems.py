"""Validation errors as lines for the user: one line per problem, each with its path in params.yaml."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

UNKNOWN = "unknown setting; persres/config/schema.py and the method's file in persres/methods list the known ones"


def with_paths(problems: list[str]) -> PydanticCustomError:
    """One error of several lines. Each line starts with the rest of its path."""
    return PydanticCustomError("paths", "{lines}", {"lines": "\n".join(problems)})


def problem_lines(error: ValidationError) -> list[str]:
    """One line per problem, with its path."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        separator = "." if problem["type"] == "paths" else ": "
        message = UNKNOWN if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        lines += [f"{path}{separator}{line}" if path else line for line in message.split("\n")]
    return lines


def no_variant(config: str, variant: str, variants: list[str]) -> str:
    """The line for a config whose training variant does not exist."""
    return f"sample.configs.{config}.variant: no training variant {variant!r}; one of {', '.join(variants)}"
