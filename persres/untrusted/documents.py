"""JSON, YAML and CSV files from outside: bounded, read as a typed model, and wrong in one sentence that names the file and the field."""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.events import AliasEvent

from persres.errors import PersresError
from persres.untrusted.text import printable

MOST_BYTES = 64 << 20
MOST_DEPTH = 60
MOST_NODES = 200_000  # of a YAML file with its aliases written out
MOST_DIGITS = 100
SHOWN = 5  # problems in one message
Model = TypeVar("Model")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; never waits for a pipe's writer. Raises OSError, also for pipes, devices and folders."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, "it is not a regular file")


def read_file(path: Path, most: int = MOST_BYTES, fix: str = "replace or remove it") -> bytes:
    """Return the bytes of a regular file. Raises PersresError for pipes and devices, more than ``most`` bytes, and unreadable files."""
    try:
        with open_regular(path) as file:
            data = file.read(
                min(most, max(os.fstat(file.fileno()).st_size, 1 << 20)) + 1
            )  # Python reserves what it is asked for
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PersresError(f"{_shown(path)} cannot be read ({reason}); {fix}") from error
    if len(data) > most:
        raise PersresError(f"{_shown(path)} is larger than {most >> 20} MiB; {fix}")
    return data


def read_text(path: Path, most: int = 1 << 20, fix: str = "replace or remove it") -> str:
    """Return a file of UTF-8 text, with the line ends of every system as ``\\n``. Raises PersresError as :func:`read_file`."""
    try:
        text = read_file(path, most, fix).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, "it is no UTF-8 text", fix) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, model: type[Model] | Any, fix: str = "replace or remove it", most: int = MOST_BYTES) -> Model:
    """Read a JSON file as ``model``, any type that pydantic knows. Raises PersresError naming the file, the field and the fix."""
    return parse_json(read_file(path, most, fix), model, path, fix)


def parse_json(data: bytes | str, model: type[Model] | Any, name: object, fix: str = "replace or remove it") -> Model:
    """Read JSON from memory as ``model``; ``name`` is what an error calls it. Raises PersresError naming the field and the fix."""
    try:
        return TypeAdapter(model).validate_json(data.removeprefix(codecs.BOM_UTF8) if isinstance(data, bytes) else data)
    except ValidationError as error:
        raise _wrong(name, _problems(error), fix) from error
    except Exception as error:  # whatever the parser or a model's own check raises is this file's fault
        raise _wrong(name, str(error), fix) from error


def read_yaml(path: Path, model: type[Model] | Any, fix: str = "replace or remove it", most: int = MOST_BYTES) -> Model:
    """Read a YAML file as ``model``, as :func:`read_json`; depth and aliases are bounded."""
    return parse_yaml(read_file(path, most, fix), model, path, fix)


def parse_yaml(data: bytes | str, model: type[Model] | Any, name: object, fix: str = "replace or remove it") -> Model:
    """Read YAML from memory as ``model``, as :func:`parse_json`."""
    try:
        raw = yaml.load(data, _BoundedLoader)  # noqa: S506 (a SafeLoader)
        return TypeAdapter(model).validate_python(raw)
    except ValidationError as error:
        raise _wrong(name, _problems(error), fix) from error
    except RecursionError as error:
        raise _wrong(name, "it is nested too deeply", fix) from error
    except Exception as error:  # YAMLError, but constructors of dates and numbers raise their own
        raise _wrong(name, " ".join(str(error).split()), fix) from error


def read_csv(path: Path, row: type[Any], fix: str = "replace or remove it", text: tuple[str, ...] = ()) -> Any:
    """Read a CSV file as a data frame whose rows are valid for the model ``row``; columns that it does not name stay as they are.

    Columns named in ``text`` stay text where they look like numbers. Raises PersresError as :func:`read_json`.
    """
    return parse_csv(read_file(path, MOST_BYTES, fix), row, path, fix, text)


def parse_csv(
    data: bytes, row: type[Any], name: object, fix: str = "replace or remove it", text: tuple[str, ...] = ()
) -> Any:
    """Read CSV from memory, as :func:`read_csv`."""
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(data), dtype=dict.fromkeys(text, str))
        if missing := [name for name in getattr(row, "model_fields", ()) if name not in table]:
            raise ValueError(f"it has no column {missing[0]}")  # a table without rows too
        TypeAdapter(list[row]).validate_python(table.astype(object).where(table.notna(), None).to_dict("records"))
    except ValidationError as error:
        raise _wrong(name, _problems(error), fix) from error
    except Exception as error:  # pandas raises half a dozen kinds
        raise _wrong(name, str(error), fix) from error
    return table


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with a bound on depth and on the size with aliases written out."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth, self.nodes, self.sizes = 0, 0, {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(AliasEvent) and self.peek_event().anchor
        start = self.nodes
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and node not in self.sizes:
            raise yaml.YAMLError(f"the alias *{alias} contains itself")
        self.nodes += self.sizes[node] if alias else 1
        if self.nodes > MOST_NODES:
            raise yaml.YAMLError(f"it has more than {MOST_NODES} values")
        self.sizes.setdefault(node, self.nodes - start)
        return node


def _integer(loader: _BoundedLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MOST_DIGITS:  # Python prints none of more than 4300
        raise yaml.YAMLError(f"a number has more than {MOST_DIGITS} digits")
    return loader.construct_yaml_int(node)


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _integer)


def _problems(error: ValidationError) -> str:
    """The first problems of a validation, each with its field."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in problems[:SHOWN]
    ]
    more = len(problems) - SHOWN
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def _wrong(name: object, reason: str, fix: str) -> PersresError:
    return PersresError(f"{_shown(name)} is not valid ({printable(reason, 500)}); {fix}")


def _shown(name: object) -> str:
    return printable(name, 1000)
