"""WordNet 3.0's noun senses with their counts, and the hypernyms of their synsets.

``senses.txt.xz`` is made from Debian's ``wordnet-base`` 1:3.0-37 (see LICENSE) by persres/experiments/wordnet_senses.py. It has one line per noun,
in the order of ``nouns.txt.xz``: its synsets by number, the commonest first, as ``number:count`` where the tagged texts have a
count (``cntlist.rev``). After a blank line it has one line per synset: the lexicographer file, then the hypernyms.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

from persres.datasets.wordnet import load_nouns

SYNSETS = 82_115
# Lexicographer files (lexnames(5WN)) of things that a photo can show: animal, artifact, body, food, natural object, person, plant.
SHOWN = frozenset({5, 6, 8, 13, 17, 18, 20})


@dataclass(frozen=True)
class Sense:
    """One sense of a noun: its synset's number, its rank among the noun's senses (0 the commonest), its count in the tagged texts."""

    synset: int
    place: int
    count: int


@dataclass(frozen=True)
class Senses:
    """All nouns' senses, and each synset's lexicographer file and hypernyms (the classes of instances too)."""

    senses: dict[str, tuple[Sense, ...]]
    file: tuple[int, ...]
    hypernyms: tuple[tuple[int, ...], ...]
    _above: dict[int, frozenset[int]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)

    def shown(self, noun: str) -> dict[int, float]:
        """The noun's synsets that a photo can show, with their shares of the noun's use; empty for a word without any.

        The weight of a sense is its count plus 1, divided by its rank."""
        weights = {
            s.synset: (s.count + 1) / (s.place + 1) for s in self.senses.get(noun, ()) if self.can_show(s.synset)
        }
        return {synset: weight / sum(weights.values()) for synset, weight in weights.items()}

    def can_show(self, synset: int) -> bool:
        """Whether a photo can show the synset."""
        return self.file[synset] in SHOWN

    def above(self, synset: int) -> frozenset[int]:
        """The synset and all of its hypernyms, direct and indirect."""
        if synset not in self._above:
            self._above[synset] = frozenset({synset}).union(*(self.above(h) for h in self.hypernyms[synset]))
        return self._above[synset]

    def sizes(self) -> list[int]:
        """Number of synsets below each, itself included. Computed once."""
        if not self._sizes:
            self._sizes.extend([0] * len(self.file))
            for synset in range(len(self.file)):
                for above in self.above(synset):
                    self._sizes[above] += 1
        return self._sizes


@lru_cache(maxsize=1)
def load_senses() -> Senses:
    """Read the table, once per process (about a second)."""
    packed = files("persres.datasets.wordnet").joinpath("senses.txt.xz").read_bytes()
    nouns, synsets = lzma.decompress(packed).decode().split("\n\n")
    rows = [tuple(map(int, line.split())) for line in synsets.splitlines()]
    senses = {noun: _senses(line) for noun, line in zip(load_nouns(), nouns.splitlines(), strict=True)}
    return Senses(senses, tuple(row[0] for row in rows), tuple(row[1:] for row in rows))


def _senses(line: str) -> tuple[Sense, ...]:
    parts = (entry.partition(":") for entry in line.split())
    return tuple(Sense(int(synset), place, int(count or 0)) for place, (synset, _, count) in enumerate(parts))
