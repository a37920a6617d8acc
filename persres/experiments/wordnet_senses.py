"""Write ``senses.txt.xz`` of persres/datasets/wordnet from WordNet 3.0's files."""

from __future__ import annotations

import lzma
from collections import defaultdict
from pathlib import Path

from persres.datasets.wordnet import load_nouns


def write_senses(wordnet: Path, out: Path) -> None:
    """Write the table from a folder with WordNet 3.0's ``data.noun``, ``index.noun`` and ``cntlist.rev`` (Debian: /usr/share/wordnet)."""
    numbers, rows = _synsets(wordnet / "data.noun")
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, place, count = line.split()
        lemma, _, kind = key.partition("%")
        if kind.startswith("1:"):
            counts[lemma][int(place) - 1] = int(count)
    nouns = {}
    for line in _entries(wordnet / "index.noun"):
        lemma, synsets = line.split()[0], line.split()[-int(line.split()[2]) :]
        known = counts.get(lemma, {})
        entries = [f"{numbers[s]}:{known[i]}" if i in known else str(numbers[s]) for i, s in enumerate(synsets)]
        nouns[lemma.replace("_", " ").lower()] = " ".join(entries)
    text = "\n".join(nouns[noun] for noun in load_nouns()) + "\n\n" + "\n".join(rows) + "\n"
    out.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def _entries(path: Path) -> list[str]:
    """The lines of a WordNet file after its licence."""
    return [line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("  ")]


def _synsets(path: Path) -> tuple[dict[str, int], list[str]]:
    """Each synset's number by its offset in data.noun (wndb(5WN)), and its line of the table."""
    entries = [line.split(" | ")[0].split() for line in _entries(path)]
    numbers = {entry[0]: number for number, entry in enumerate(entries)}
    rows = []
    for entry in entries:
        pointers = entry[5 + 2 * int(entry[3], 16) :]
        above = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
        rows.append(" ".join(map(str, [int(entry[1]), *(numbers[a] for a in above)])))
    return numbers, rows
