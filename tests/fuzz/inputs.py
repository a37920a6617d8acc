"""Hypothesis strategies of damaged input: bytes with edits, documents with strange values."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

OUTSIDE = "/tmp/persres-fuzz-outside"  # nothing may ever be written there
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 0.5, 1e308, float("nan"), float("inf"), 10**400, "", " ", "x", "1", "..", "../../outside", f"{OUTSIDE}/x",
    "a/../../outside", "a\0b", "a\nb", "\x1b[2J", "\u202ex", "é" * 300, "x" * 100_000, "--output=x", "/dev/zero", "C:\\x", "<script>", "{}",
    "{0.__class__}", "%s%n", "(a+)+$", "s3://a/b#c", [], {}, [None], [[]], {"": {}}, {"a": [1]}, ["x", "y"], "null", "NaN", "2001-99-99",
)  # fmt: skip
TOKENS = tuple(
    text.encode(errors="surrogatepass")
    for text in ("", "\0", "../", f"{OUTSIDE}/x", "[" * 3000, "{" * 3000, '"', "'", "\n", "\x1b[2J", "NaN", "1e999", "-1", "9" * 5000, "&a [*a]",
                 "*a", "!!python/name:os.system", "<<: ", "\ud800", "\ufeff", "{}", "[]", "null", ": ", "- ", "\t", "#", "%", "\\u0000")
)  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds with one to four edits: bytes replaced, removed, repeated, cut off, or a token inserted."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)))
        kind = draw(st.sampled_from(("replace", "remove", "repeat", "cut", "token", "flip")))
        match kind:
            case "replace":
                data = data[:start] + draw(st.binary(max_size=16)) + data[end:]
            case "remove":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:end] + data[start:end] * draw(st.integers(1, 50)) + data[end:]
            case "cut":
                data = data[:start]
            case "token":
                data = data[:start] + draw(st.sampled_from(TOKENS)) + data[end:]
            case "flip":
                data = (
                    data[:start]
                    + bytes(b ^ (1 << draw(st.integers(0, 7))) for b in data[start : start + 1])
                    + data[start + 1 :]
                )
    return data


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[Any, ...]) -> Any:
    """One of the documents with one to three strange values: in place of one, under a new key, or as a key; or without one."""
    document = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(st.sampled_from(STRANGE))
        inside, key = draw(st.sampled_from(places))
        strange = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        match draw(st.sampled_from(("value", "value", "remove", "key", "nest", "whole"))):
            case "value":
                inside[key] = strange
            case "remove":
                del inside[key]
            case "key" if isinstance(inside, dict):
                inside[str(strange)] = inside.pop(key)
            case "nest":
                inside[key] = [inside[key]]
            case "whole" if draw(st.integers(0, 9)) == 0:
                return strange
    return document


def _places(value: Any):
    """Every container of a document with every key of it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def as_json(document: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(document).encode()


def as_yaml(document: Any) -> bytes:
    """YAML as PyYAML writes it."""
    return yaml.safe_dump(document, allow_unicode=True).encode(errors="surrogatepass")


def json_files(*seeds: Any) -> st.SearchStrategy[bytes]:
    """JSON files: damaged documents, and damaged bytes."""
    return damaged(seeds).map(as_json) | damaged_bytes(tuple(as_json(seed) for seed in seeds))


def yaml_files(*seeds: Any) -> st.SearchStrategy[bytes]:
    """YAML files: damaged documents, and damaged bytes."""
    return damaged(seeds).map(as_yaml) | damaged_bytes(tuple(as_yaml(seed) for seed in seeds))
