"""What people would call a thing that an encoder names too finely: "dog" for a Pembroke, from WordNet's hypernyms.

Each noun hands its probability to the best name on its way up the tree. A good name holds much of the probability (what the
photos agree on), still says something (few of WordNet's synsets lie below it: the information that Deng et al., "Hedging your
bets", CVPR 2012, weigh against certainty), and is a word that people use: often met, and short to a tokenizer (paper 3.2 puts it into
every prompt). Names compete with what they are a kind of, never with other things, so a rare thing is not taken for a common one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from persres.datasets.wordnet.senses import Senses

INFORMATION = 2.0  # how much a narrow name is preferred; at 1 WordNet's "device" takes what "glasses" should
PER_TOKEN = 0.5  # what each further token costs a name
OWN_SENSE = 0.5  # least share of a word's use that must mean the synset which it names
Tokens = Callable[[str], int]
Names = dict[int, tuple[str, float]]  # by synset


def names_of(nouns: Iterable[str], candidates: Iterable[str], senses: Senses, tokens: Tokens) -> Names:
    """The best name among ``candidates`` of all that ``nouns`` are kinds of, by synset, and its weight:
    (1 + log(1 + count)) · PER_TOKEN^(tokens − 1). ``tokens`` counts a word's tokens."""
    wanted = {above for noun in nouns for synset in senses.shown(noun) for above in senses.above(synset)}
    found: Names = {}
    for noun in candidates:
        counts = {s.synset: s.count for s in senses.senses.get(noun, ()) if s.synset in wanted}
        shown = senses.shown(noun) if counts else {}
        for synset in (s for s in counts if shown.get(s, 0) >= OWN_SENSE):
            weight = (1 + math.log1p(counts[synset])) * PER_TOKEN ** (tokens(noun) - 1)
            if weight > found.get(synset, ("", 0.0))[1]:
                found[synset] = noun, weight
    return found


def renamed(mass: dict[str, float], names: Names, senses: Senses) -> dict[str, dict[str, float]]:
    """Which names each noun hands its probability to, with the part that each gets. ``mass``: probability by noun.

    A noun that WordNet does not have keeps its own; one that only means what no photo shows ("night") hands on nothing.
    """
    pooled: dict[int, float] = defaultdict(float)
    for noun, probability in mass.items():
        for synset, part in senses.shown(noun).items():
            for above in senses.above(synset) & names.keys():
                pooled[above] += probability * part
    worth = {s: held * _information(s, senses) ** INFORMATION * names[s][1] for s, held in pooled.items()}
    return {noun: _handed(noun, names, worth, senses) for noun in mass}


def _information(synset: int, senses: Senses) -> float:
    """1 for a synset with nothing below it, 0 for the root."""
    return 1 - math.log(senses.sizes()[synset]) / math.log(len(senses.file))


def _handed(noun: str, names: Names, worth: dict[int, float], senses: Senses) -> dict[str, float]:
    if noun not in senses.senses:
        return {noun: 1.0}
    parts: dict[str, float] = defaultdict(float)
    for synset, part in senses.shown(noun).items():
        over = senses.above(synset) & worth.keys()
        parts[names[max(over, key=lambda s: (worth[s], -s))][0] if over else noun] += part
    return dict(parts)


def shares(mass: dict[str, float], handed: dict[str, dict[str, float]]) -> dict[str, float]:
    """Probability by name, the largest first; they add up to 1. Empty where no noun can be seen on a photo."""
    total: dict[str, float] = defaultdict(float)
    for noun, probability in mass.items():
        for name, part in handed[noun].items():
            total[name] += probability * part
    whole = sum(total.values())
    return {n: total[n] / whole for n in sorted(total, key=lambda n: (-total[n], n))} if whole > 0 else {}
