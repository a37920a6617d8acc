"""The noun lemmas of WordNet 3.0, from Debian's ``wordnet-base`` 1:3.0-37 (see LICENSE)."""

from __future__ import annotations

import lzma
from importlib.resources import files
from pathlib import Path

from persres.errors import PersresError
from persres.package_paths import located
from persres.untrusted.documents import read_text
from persres.untrusted.text import plain_text

COUNT = 117_798
MOST_CANDIDATES = 16 << 20  # bytes


def load_nouns() -> list[str]:
    """All lemmas in lower case as WordNet's index has them, words separated by blanks, sorted."""
    packed = files("persres.datasets.wordnet").joinpath("nouns.txt.xz").read_bytes()
    return lzma.decompress(packed).decode().splitlines()


def load_candidates(source: str) -> list[str]:
    """The nouns of ``wordnet``, or of a text file with one noun per line. Raises PersresError for a missing or empty file."""
    if source == "wordnet":
        return load_nouns()
    path = Path(located(source))
    if not path.is_file():
        raise PersresError(f"macro_class.candidates: no file {path}; write one noun per line there, or set wordnet")
    text = read_text(path, MOST_CANDIDATES, "write one noun per line there, as UTF-8")
    nouns = [plain_text(line.strip(), f"{path}: noun", 100) for line in text.splitlines() if line.strip()]
    if not nouns:
        raise PersresError(f"macro_class.candidates: {path} is empty; write one noun per line there")
    return nouns
